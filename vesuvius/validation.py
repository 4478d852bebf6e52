"""The score of a network while it is trained: the held-out pieces, mapped whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from core.deploy import specialize
from core.inference import stream
from core.metrics import ProbabilityHistogram
from core.pictures import shrink, side_by_side
from core.tiling import TilePlan
from core.training import Validation
from core.unet3d import TaskConditioned
from vesuvius.folds import Piece
from vesuvius.inkmap import Window, ink_predictor, window_reader
from vesuvius.prepared import LayersInnermost, PreparedVolume
from vesuvius.recipes import ValidationConfig
from vesuvius.tasks import Tasks


class Validator:
    """Maps the held-out pieces and scores them together: best F0.5 and its threshold.

    The threshold is kept with the checkpoint, and is what `vesuvius submit` uses. Each piece is
    mapped by the task of its fragment's ink, or by the mean gate if there is none.

    Raises:
        ValueError: If a held-out piece has no label, or none of them has ink.
    """

    def __init__(
        self,
        volumes: Mapping[str, PreparedVolume],
        pieces: Sequence[Piece],
        windows: Mapping[str, Window],
        config: ValidationConfig,
        tasks: Tasks,
    ) -> None:
        self._volumes = volumes
        self._pieces = [piece for piece in pieces if piece.role == "validation"]
        self._windows = windows
        self._config = config
        self._tasks = tasks
        self._check_labels()

    def __call__(self, model: TaskConditioned) -> Validation:
        """Return the score of `model`, with a picture of label and prediction per piece."""
        device = next(model.parameters()).device
        gates = {piece: self._tasks.gates_of(piece.fragment) for piece in self._pieces}
        plain = {several: specialize(model, several) for several in set(gates.values())}
        histogram = ProbabilityHistogram()
        previews = {
            piece.fragment: self._map(plain[gates[piece]], piece, device, histogram)
            for piece in self._pieces
        }
        threshold, f05 = histogram.best_threshold()
        metrics = {
            "f05": f05,
            "threshold": threshold,
            "average_precision": histogram.average_precision(),
        }
        return Validation(
            score=f05, metrics=metrics, previews=previews, meta={"threshold": threshold}
        )

    def _check_labels(self) -> None:
        """Refuse pieces that cannot be scored."""
        has_ink = False
        for piece in self._pieces:
            label = self._volumes[piece.fragment].ink_label
            if label is None:
                raise ValueError(
                    f"{piece} has no ink label and cannot be scored; hold out a labelled fragment"
                )
            mask = self._volumes[piece.fragment].labelled_papyrus
            has_ink = has_ink or bool((label[piece.slices] & mask[piece.slices]).any())
        if not has_ink:
            raise ValueError(
                f"no ink in {', '.join(map(str, self._pieces))}, so nothing can be scored; hold "
                "out a larger fraction or another fragment"
            )

    def _map(
        self,
        plain: nn.Module,
        piece: Piece,
        device: torch.device,
        histogram: ProbabilityHistogram,
    ) -> np.ndarray:
        """Count the probabilities of a piece and return label and map as one picture."""
        volume, window = self._volumes[piece.fragment], self._windows[piece.fragment]
        shape = (piece.y_stop - piece.y_start, piece.x_stop - piece.x_start)
        tile, stride = self._config.tile_size, self._config.stride
        label, mask = volume.ink_label[piece.slices], volume.labelled_papyrus[piece.slices]
        prob = np.empty(shape, np.float32)

        def write(start: int, stop: int, values: np.ndarray) -> None:
            histogram.add(values[0], label[start:stop], mask[start:stop])
            prob[start:stop] = values[0]

        stream(
            TilePlan(shape, (tile, tile), (stride, stride)),
            window_reader(LayersInnermost(volume.volume), window, piece),
            ink_predictor(plain, window, device),
            write,
            batch_size=8,
            mask=mask,
        )
        return side_by_side(shrink(label), shrink(prob))
