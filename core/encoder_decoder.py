"""An encoder, a decoder and a head over fields of any size: volumes to volumes, or maps to maps.

Shape legend: N samples, C channels, S spatial axes (ZYX or YX).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def pad_to_multiple(x: Tensor, multiple: int | Sequence[int]) -> Tensor:
    """Repeat the far edge of each spatial axis until its length is a multiple.

    Example: multiple 16, axes (40, 156, 160) become (48, 160, 160).

    Args:
        x: Features (N, C, *S).
        multiple: That of all spatial axes, or of each.
    """
    lengths = x.shape[2:]
    multiples = [multiple] * len(lengths) if isinstance(multiple, int) else multiple
    widths = [-length % m for length, m in zip(lengths, multiples, strict=True)][::-1]
    if not any(widths):
        return x
    return F.pad(x, [side for width in widths for side in (0, width)], mode="replicate")


class EncoderDecoder(nn.Module):
    """Any encoder, any decoder that returns to the input's size, and a head.

    Args:
        encoder: Fields to a list of features, finest first; called with the condition too.
        decoder: These features to what the head takes; called with the condition too.
        head: That to the prediction; called with the condition too.
        multiple: Number that lengths are padded to multiples of; the prediction is cropped back.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, head: nn.Module, multiple: int
    ) -> None:
        super().__init__()
        self.multiple = multiple
        self.encoder = encoder
        self.decoder = decoder
        self.head = head

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """Return the prediction (N, C_out, *S) for fields (N, C_in, *S)."""
        features = self.encoder(pad_to_multiple(x, self.multiple), *condition)
        out: Tensor = self.head(self.decoder(features, *condition), *condition)
        whole = slice(None)
        return out[(whole, whole, *(slice(length) for length in x.shape[2:]))]
