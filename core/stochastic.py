"""Monte Carlo samples of a task-gated network: seeded dropout and noise on the gates.

A sample is one network for the whole field. Its gates are moved once. Its dropout masks lie in the
field, not in the tile: whether an element is dropped is a pure function of (seed, sample, layer,
channel, position in the field). So a tile is predicted alike in any batch, in any order, on any
device, today or later, and where tiles overlap they drop the same, so that blending them does not
average the noise away and leave the tiles' grid in the map of uncertainty. That is exact where the
corners of tiles are multiples of all halvings of the network; elsewhere (the last tile of a row, an
odd stride) the masks of deep layers lie up to one element off. A mask is computed by an integer
hash, not drawn from a generator: that needs no state, gives a CPU and a GPU the same bits, and runs
where the features are.

Reference: Gal and Ghahramani, Dropout as a Bayesian Approximation, ICML 2016; dropout before each
MoDE block and noise on the gates, both in evaluation, are the seed project's.

Shape legend: N tiles, C channels, S spatial axes, D distinct tasks, E experts, O output channels.
"""

from __future__ import annotations

import copy
import hashlib
import math
import struct
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from core.gates import Gate
from core.inference import Corner
from core.mode import MoDE
from core.unet3d import ConvNormAct, TaskConditioned

NUM_WORDS = 1 << 32  # dropout probabilities are multiples of 1 / NUM_WORDS


def draw_sample(
    model: TaskConditioned, seed: int, index: int, dropout: float, gate_noise: float
) -> TaskConditioned:
    """Return sample `index` of a network, in evaluation mode.

    It shares the parameters and buffers of `model`, which is left as it is. Before each call,
    `place` must tell it which tiles it is given. `core.deploy.specialize` makes of it the plain
    network of one task, with the same gates and masks and much faster. The head gets noise on its
    gate but no dropout, which belongs to a block, and there is none around the head.

    Args:
        model: A network of MoDE blocks.
        seed: Of the whole ensemble.
        index: Which sample, from 0.
        dropout: Probability of dropping an input element of a block of a MoDE, from 0 to below 1.
        gate_noise: Standard deviation of the normal noise added to the logits of every gate, at
            least 0.

    Raises:
        ValueError: If the dropout or the noise is out of range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout} is outside 0..1; give a probability below 1")
    if not 0 <= gate_noise < float("inf"):
        raise ValueError(f"gate noise {gate_noise} is no standard deviation; give 0 or more")
    tensors = chain(model.parameters(), model.buffers())
    sample = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
    for name, module in sample.named_modules():
        if isinstance(module, ConvNormAct) and isinstance(module.conv, MoDE) and dropout:
            module.add_module("dropout", SeededDropout(dropout, (seed, index, name)))
        if isinstance(module, Gate) and gate_noise:  # an extended MoDE has one for each extension
            module.perturb = GateNoise(gate_noise, (seed, index, name))
    return sample


def place(network: nn.Module, corners: Sequence[Corner], tile: Sequence[int]) -> None:
    """Tell the dropout of a network which tiles the next batch holds.

    Args:
        network: A sample, or what `specialize` made of it; any other network has nothing to know.
        corners: First position of each tile in the field, along its last axes, the tiled ones.
        tile: Size of a tile along the same axes; it must be above half of what the network pads it
            to, as how often deep features were halved is told from their size.
    """
    for module in network.modules():
        if isinstance(module, SeededDropout):
            module.corners, module.tile = corners, tuple(tile)


class SeededDropout(nn.Module):
    """Dropout whose masks follow from a key and the position in the field, in any mode.

    Args:
        p: Probability of dropping an element, from 0 to below 1; what is kept is scaled up by the
            share of elements kept, so that the mean stays.
        key: Which sample and layer this is.
    """

    def __init__(self, p: float, key: tuple[int | str, ...]) -> None:
        super().__init__()
        self.num_dropped = min(round(p * NUM_WORDS), NUM_WORDS - 1)
        self.key = key
        self.corners: Sequence[Corner] = ()
        self.tile: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, C, *S) with elements set to 0 and the others scaled up.

        Raises:
            RuntimeError: If `place` did not name these tiles.
        """
        if len(self.corners) != len(x):
            raise RuntimeError(
                f"{len(x)} tiles come to a dropout that was told of {len(self.corners)}; "
                "call core.stochastic.place before the network"
            )
        scaled = x * (NUM_WORDS / (NUM_WORDS - self.num_dropped))
        return scaled.masked_fill_(self.dropped(x.shape, x.device), 0)

    def dropped(self, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Return which elements of features of a shape (N, C, *S) are dropped, as bool."""
        offset, factor = struct.unpack("<ii", _digest(*self.key))
        positions = self._positions(shape)
        words = random_words(offset, factor, [axis.to(device) for axis in positions])
        return (words < self.num_dropped - NUM_WORDS // 2).expand(*shape)

    def _positions(self, shape: Sequence[int]) -> list[Tensor]:
        """Return where the features lie: for each axis but the first, int32 (N or 1, length).

        A block deep in the network sees the field halved several times: tile 64 and length 16 mean
        twice, so a corner at 128 is at 32 there.
        """
        positions = [torch.arange(length, dtype=torch.int32)[None] for length in shape[1:]]
        for axis, length in enumerate(self.tile, -len(self.tile)):
            # rounded up, as tiles are padded to what can be halved
            halvings = max(math.ceil(math.log2(length / shape[axis])), 0)
            starts = [int(corner[axis]) >> halvings for corner in self.corners]
            positions[axis] = positions[axis] + torch.tensor(starts, dtype=torch.int32)[:, None]
        return positions

    def extra_repr(self) -> str:
        """Return what `print` shows of it."""
        return f"p={self.num_dropped / NUM_WORDS:.4g}, key={self.key}"


class GateNoise(nn.Module):
    """Normal noise on the logits of a gate, drawn once.

    Args:
        std: Standard deviation.
        key: Which sample and gate this is.
    """

    def __init__(self, std: float, key: tuple[int | str, ...]) -> None:
        super().__init__()
        self.std = std
        self.seed = int.from_bytes(_digest(*key), "little") >> 1  # a generator takes 63 bits

    def forward(self, logits_DEO: Tensor) -> Tensor:
        """Return the logits (D, E, O) moved by one noise (E, O), whatever the task."""
        generator = torch.Generator().manual_seed(self.seed)
        noise_EO = torch.randn(logits_DEO.shape[1:], generator=generator)
        return logits_DEO + self.std * noise_EO.to(logits_DEO)


def random_words(offset: int, factor: int, positions: Sequence[Tensor]) -> Tensor:
    """Return a number for each point of a lattice, uniform over the range of int32.

    The number is a hash that takes the coordinates in one after the other; so all but the last
    cost little. Sums and products wrap.

    Args:
        offset: Half of the key, any int32.
        factor: The other half.
        positions: For each axis of the lattice its coordinates, int32 (N or 1, length).

    Returns:
        int32 (N or 1, *lengths).

    Reference: Wellons, "lowbias32", the integer hash of least bias in his search of 2018.
    """
    words = torch.tensor(offset, dtype=torch.int32, device=positions[0].device)
    odd = factor | 1  # so that no two coordinates become the same
    for axis, coordinates in enumerate(positions, 1):
        lengths = [1] * len(positions)
        lengths[axis - 1] = -1
        words = words + coordinates.view(len(coordinates), *lengths) * odd
        _fold(words, 16).mul_(0x7FEB352D)
        _fold(words, 15).mul_(0x846CA68B - NUM_WORDS)
        _fold(words, 16)
    return words


def _fold(words: Tensor, shift: int) -> Tensor:
    """Combine int32 words with their own high bits by exclusive or, in place, and return them."""
    words ^= (words >> shift).bitwise_and_((1 << (32 - shift)) - 1)
    return words


def _digest(*key: int | str) -> bytes:
    """Return 8 bytes that follow from a key, the same on every machine."""
    return hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
