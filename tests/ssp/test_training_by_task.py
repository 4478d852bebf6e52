"""The one training loop serves networks of which a batch uses only some parts."""

from __future__ import annotations

import pytest
import torch

from core import checkpoint
from core.run_folder import RunFolder
from core.training import TrainingConfig, Validation, fit
from ssp.losses import squared_error
from tests.ssp.networks import network, small, volumes

CONFIG = TrainingConfig(epochs=2, batch_size=2, learning_rate=1e-2, precision="no")


class Cubes:
    """Two batches of task 0 in the first epoch, of tasks 0 and 2 in the second."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, epoch_and_index):
        epoch, index = epoch_and_index
        x = volumes(8, 1, 8, 8, 8)[4 * epoch + index]
        return {"x": x, "y": x.abs(), "task": 2 * (epoch * index % 2)}


def loss(model, batch):
    return squared_error(model(batch["x"], batch["task"]), batch["y"]), {}


def train(path, resume=False, validate=lambda model: Validation(0.0)):
    fit(network(small("multi-net")), Cubes(), loss, validate, CONFIG, path, {}, resume)
    return checkpoint.load(RunFolder(path).last_path, checkpoint.TRAINING_STATE)[0]


def test_a_run_of_multi_net_leaves_unlabelled_tasks_alone_and_resumes_exactly(tmp_path):
    epochs = iter([Validation(0.0)])  # the second validation fails

    with pytest.raises(StopIteration):
        train(tmp_path / "stopped", validate=lambda model: next(epochs))
    resumed, whole = train(tmp_path / "stopped", resume=True), train(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    start = network(small("multi-net")).state_dict()
    changed = {
        key.split(".")[2] for key in start if not torch.equal(start[key], whole[f"model.{key}"])
    }
    assert changed == {"0", "2"}
    moments = {key.split(".")[4] for key in whole if key.startswith("optimizer.")}
    assert moments == {"0", "2"}
