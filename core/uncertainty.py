"""Many predictions of one field: their mean, and how far they disagree.

A `Member` is one way to predict a tile: a network looked through by a view, a flip, quarter turn or
move along z that is undone on the prediction. The network may be a checkpoint or a Monte Carlo
sample of one (`core.stochastic`). An ensemble is a sequence of members, whatever their kinds;
`predictor` runs it over tiles with one channel per member, and moments take the finished maps one
after the other and keep none of them.

What is a prediction here is the map, blended from its tiles, not the tile: mean and spread are
those of the maps that each member would give alone.

Shape legend: N tiles, M members, C channels, S spatial axes ending in Y X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from core.inference import Corner, Predict, torch_predictor
from core.stochastic import place


@dataclass(frozen=True)
class View:
    """One of the ways to look at a tile: layers cut out, reversed, mirrored, then turned.

    Attributes:
        turns: Quarter turns of the plane, 0..3.
        is_mirrored: Whether the columns are reversed.
        is_reversed: Whether the layers are.
        layers: First and one past the last of the layers that are looked at, None for all. A view
            of some is for networks that predict maps.
    """

    turns: int = 0
    is_mirrored: bool = False
    is_reversed: bool = False
    layers: tuple[int, int] | None = None

    def apply(self, x: Tensor) -> Tensor:
        """Return tiles (..., Z, Y, X) as this view shows them."""
        if self.layers:
            x = x[..., slice(*self.layers), :, :]
        axes = [axis for axis, is_set in ((-3, self.is_reversed), (-1, self.is_mirrored)) if is_set]
        x = x.flip(axes) if axes else x  # each copies, also where nothing moves
        return torch.rot90(x, self.turns, (-2, -1)) if self.turns else x

    def undo(self, predicted: Tensor) -> Tensor:
        """Return predictions of such tiles, volumes (N, C, Z, Y, X) or maps (N, C, Y, X), as seen.

        Maps have no layers that could be reversed.
        """
        is_reversed = self.is_reversed and predicted.ndim == 5
        axes = [axis for axis, is_set in ((-3, is_reversed), (-1, self.is_mirrored)) if is_set]
        turned = torch.rot90(predicted, -self.turns, (-2, -1)) if self.turns else predicted
        return turned.flip(axes) if axes else turned

    def box(self, corner: Corner, tile: Corner) -> tuple[Corner, Corner]:
        """Return corner and size of a tile in the field as this view shows it.

        What is mirrored runs from -1 down: of a field 0 1 2 3 the tile 2 3 becomes -4 -3. A corner
        that halves evenly still does so if the size does.
        """
        starts, sizes = list(corner), list(tile)
        if self.is_reversed and len(starts) == 3:
            starts[0] = -starts[0] - sizes[0]
        if self.is_mirrored:
            starts[-1] = -starts[-1] - sizes[-1]
        for _ in range(self.turns):
            starts[-2:] = -starts[-1] - sizes[-1], starts[-2]
            sizes[-2:] = sizes[-1], sizes[-2]
        return tuple(starts), tuple(sizes)


def plane_views() -> list[View]:
    """Return the 8 flips and quarter turns of the plane, the plain view first."""
    return [View(turns, is_mirrored) for is_mirrored in (False, True) for turns in range(4)]


def with_reversed(views: Sequence[View]) -> list[View]:
    """Return views, then the same with their layers reversed."""
    return [*views, *(replace(view, is_reversed=True) for view in views)]


def with_shifts(views: Sequence[View], reach: int, num_layers: int) -> list[View]:
    """Return views of a window of layers, then the same with it moved, near before far.

    Args:
        views: Views of all layers.
        reach: Most layers by which the window moves to either side. Tiles have so many more layers
            before and after it: with a reach of 1 the window of 4 layers is 1-4 of 6, then 0-3
            and 2-5.
        num_layers: Layers of the window.
    """
    starts = sorted(range(2 * reach + 1), key=lambda start: abs(start - reach))
    return [replace(view, layers=(start, start + num_layers)) for start in starts for view in views]


class Member(nn.Module):
    """One way to predict a tile: a network looked through by a view.

    Args:
        network: Tiles (N, ..., Y, X) to predictions (N, C, *S).
        view: How the network sees them.
    """

    def __init__(self, network: nn.Module, view: View = View()) -> None:
        super().__init__()
        self.network = network
        self.view = view

    def forward(self, tiles: Tensor, corners: Sequence[Corner]) -> Tensor:
        """Return the predictions (N, C, *S) of tiles (N, ..., Y, X), given their corners."""
        if corners:
            tile = tuple(tiles.shape[-len(corners[0]) :])
            seen = [self.view.box(corner, tile) for corner in corners]
            place(self.network, [corner for corner, _ in seen], seen[0][1])
        return self.view.undo(self.network(self.view.apply(tiles)))


def make_members(
    indices: range, views: Sequence[View], make_network: Callable[[int], nn.Module]
) -> list[Member]:
    """Return members by their indices, counted network by network and for each view by view.

    Args:
        indices: With 8 views, 8 to 15 are those of network 1.
        views: How each network looks at a tile.
        make_network: Makes a network of its number; called once for each.
    """
    numbers = dict.fromkeys(index // len(views) for index in indices)
    networks = {number: make_network(number) for number in numbers}
    return [Member(networks[i // len(views)], views[i % len(views)]) for i in indices]


def predictor(
    members: Sequence[Member], device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Predict:
    """Return a `predict` for `core.inference.stream` with the channels of all members in turn.

    Args:
        members: Moved to the device and into evaluation mode here.
        device: Where to compute.
        dtype: Precision of autocast; float32 switches it off.
    """
    placed = [member.to(device).eval() for member in members]

    def predict_all(tiles: Tensor, corners: Sequence[Corner]) -> Tensor:
        predicted = [member(tiles, corners) for member in placed]
        return predicted[0] if len(predicted) == 1 else torch.cat(predicted, 1)

    return torch_predictor(predict_all, device, dtype)


@dataclass
class Moments:
    """Mean and spread of arrays of one shape, taken one after the other.

    Attributes:
        count: How many were taken.
        mean: Their mean, float64 (*S).
        squares: Sum of their squared distances from it, float64 (*S).

    Reference: Welford, Technometrics 1962.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Moments:
        """Return the moments of nothing."""
        return cls(0, np.zeros(shape), np.zeros(shape))

    def add(self, values: np.ndarray) -> None:
        """Take one more array (*S)."""
        self.count += 1
        delta = values - self.mean
        self.mean += delta / self.count
        self.squares += delta * (values - self.mean)

    def std(self) -> np.ndarray:
        """Return the standard deviation (*S) of just these arrays: divided by their count."""
        return np.sqrt(self.squares / self.count)


@dataclass
class ProbabilityMoments:
    """Mean and spread of maps of probability, and how far that spread is disagreement.

    The entropy of the mean is the whole uncertainty of a pixel. What is left of it when every
    member is asked alone lies in the data; the rest is the members' disagreement, the mutual
    information of prediction and member. Entropies are in bits: 1 is a fair coin.

    Attributes:
        moments: Those of the probabilities.
        mean_entropy: Mean of the entropy of each map, float64 (*S).

    Reference: Houlsby et al., Bayesian Active Learning for Classification, 2011; Depeweg et al.,
    Decomposition of Uncertainty in Bayesian Deep Learning, ICML 2018.
    """

    moments: Moments
    mean_entropy: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> ProbabilityMoments:
        """Return the moments of nothing."""
        return cls(Moments.empty(shape), np.zeros(shape))

    def add(self, prob: np.ndarray) -> None:
        """Take one more map (*S) of probabilities in 0..1."""
        self.moments.add(prob)
        self.mean_entropy += (binary_entropy(prob) - self.mean_entropy) / self.moments.count

    def predictive_entropy(self) -> np.ndarray:
        """Return the entropy of the mean (*S), 0..1 bit."""
        return binary_entropy(self.moments.mean)

    def mutual_information(self) -> np.ndarray:
        """Return what the members' disagreement adds to the entropy (*S), 0..1 bit."""
        information: np.ndarray = np.maximum(self.predictive_entropy() - self.mean_entropy, 0)
        return information


def binary_entropy(prob: np.ndarray) -> np.ndarray:
    """Return the entropy in bits of events of probability 0..1, float64 of the same shape.

    Blending may leave a probability of 1 a rounding above it; it counts as 1.
    """
    p = np.minimum(np.asarray(prob, np.float64), 1)
    least = np.finfo(np.float64).tiny  # 0 log 0 is 0
    entropy: np.ndarray = -p * np.log2(np.maximum(p, least))
    entropy -= (1 - p) * np.log2(np.maximum(1 - p, least))
    return entropy
