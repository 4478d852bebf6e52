"""Specialising leaves the model alone, refuses unknown tasks and is exact on a GPU.

That the result is the same network, on a CPU and for every network: `test_specialize_everything`.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from core.deploy import specialize
from core.map_networks import CollapsedUNet
from core.mode import MoDE
from core.unet3d import Parts, RepModeUNet, TaskConditioned


def settled(model: TaskConditioned, shape: tuple[int, ...]) -> TaskConditioned:
    """Give the batch normalisations statistics worth folding."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        for _ in range(3):
            model.train()(torch.randn(3, *shape) + 0.3, torch.arange(3) % model.num_tasks)
    return model.eval()


def ink_like() -> TaskConditioned:
    options = {"activation": "funnel", "resample_activation": "funnel"}
    network = CollapsedUNet(
        Parts(partial(MoDE, num_tasks=2), 3, dropout=0.2, **options),
        Parts(partial(MoDE, num_tasks=2, num_axes=2), 2, **options),
        num_layers=8,
        base_channels=2,
        num_stages=2,
    )
    return TaskConditioned(network, num_tasks=2)


def test_specialising_leaves_the_model_as_it_was():
    model = settled(RepModeUNet(2, base_channels=2), (1, 16, 16, 16)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = specialize(model, 1)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    after = model.state_dict()
    assert model.training
    assert all(torch.equal(before[name], after[name]) for name in before)


class Times(nn.Module):
    """Multiplies by the task, or by one that it is made for."""

    def __init__(self, factor: int | None = None) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x, *condition):
        return x * (condition[0].ids[0] if self.factor is None else self.factor)

    def plain(self, task):
        return Times(task)


def test_any_module_with_a_plain_of_its_own_becomes_it():
    model = TaskConditioned(Times(), num_tasks=3)
    x = torch.randn(1, 1, 2, 2, 2)
    for task in range(3):
        assert torch.equal(specialize(model, task)(x), model(x, torch.tensor([task])))
    with pytest.raises(ValueError, match="Times has no mean of tasks 0, 2, only mixtures"):
        specialize(model, (0, 2))


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task 2 is out of range"):
        specialize(RepModeUNet(2, base_channels=2), 2)
    with pytest.raises(ValueError, match=r"task -1, 5 is out of range.*tasks 0\.\.1"):
        specialize(RepModeUNet(2, base_channels=2), [0, 5, -1])
    with pytest.raises(ValueError, match="no task is given"):
        specialize(RepModeUNet(2, base_channels=2), [])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("build", "shape"),
    [(partial(RepModeUNet, 3, base_channels=2), (1, 16, 16, 16)), (ink_like, (1, 8, 16, 16))],
)
def test_specialised_network_equals_the_gated_one_on_a_gpu(build, shape):
    model = settled(build(), shape)
    x, tasks = torch.randn(2, *shape), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = model(x, tasks)
        plain = specialize(model.cuda(), 0)
        torch.testing.assert_close(plain(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
