"""Pictures of maps: small, beside each other, and a prediction laid over its label.

Every picture is uint8, (Y, X) gray or (Y, X, 3) RGB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.files import atomic_path

BAND_ROWS = 512
CAPTION_ROWS = 24
FOUND, MISSED, INVENTED = (255, 255, 255), (70, 130, 255), (255, 90, 60)


def shrink(map_YX: np.ndarray, max_side: int = 1200, white: float = 1.0) -> np.ndarray:
    """Return a map (Y, X) of 0..`white` as a gray picture of at most `max_side` pixels a side.

    Pixels are averaged over square blocks, band by band, so a map on disk never fills the memory;
    the last blocks repeat the edge of the map.
    """
    height, width = map_YX.shape
    factor = max(1, -(-max(height, width) // max_side))
    rows = BAND_ROWS // factor * factor or factor
    bands = []
    for start in range(0, height, rows):
        band = np.asarray(map_YX[start : start + rows], np.float32)
        band = np.pad(band, ((0, -len(band) % factor), (0, -width % factor)), mode="edge")
        blocks = band.reshape(len(band) // factor, factor, -1, factor)
        bands.append(blocks.mean(axis=(1, 3)))
    return np.round(np.concatenate(bands) * (255 / white)).clip(0, 255).astype(np.uint8)


def overlay(predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return masks (Y, X) bool as one RGB picture: found white, missed blue, invented red."""
    picture = np.zeros((*label.shape, 3), np.uint8)
    picture[predicted & label] = FOUND
    picture[~predicted & label] = MISSED
    picture[predicted & ~label] = INVENTED
    return picture


def side_by_side(*pictures: np.ndarray, gap: int = 8) -> np.ndarray:
    """Return pictures of one height beside each other, with a gray gap between them.

    They are gray, unless one of them is RGB.
    """
    if any(picture.ndim == 3 for picture in pictures):
        pictures = tuple(
            picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)
            for picture in pictures
        )
    space = np.full((pictures[0].shape[0], gap, *pictures[0].shape[2:]), 128, np.uint8)
    parts = [part for picture in pictures for part in (picture, space)]
    return np.concatenate(parts[:-1], axis=1)


def stacked(*pictures: np.ndarray, gap: int = 8) -> np.ndarray:
    """Return gray pictures of one width above each other, with a gray gap between them."""
    turned = side_by_side(*(picture.T for picture in pictures), gap=gap)
    return np.ascontiguousarray(turned.T)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """Return a picture with a line of ASCII text above it, black on white, as wide as the picture.

    The text is made smaller until it fits.
    """
    import cv2

    width = picture.shape[1]
    (length, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(0.55, (width - 4) / length)
    bar = np.full((CAPTION_ROWS, width, *picture.shape[2:]), 255, np.uint8)
    where, color = (2, CAPTION_ROWS - 7), (0,) * 3
    cv2.putText(bar, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
    return np.concatenate([bar, picture])


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(png_bytes(picture))


def png_bytes(picture: np.ndarray) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    import cv2

    if picture.ndim == 3:
        picture = picture[:, :, ::-1]
    is_encoded, encoded = cv2.imencode(".png", picture)
    assert is_encoded
    return encoded.tobytes()
