"""Lines of Greek capitals as a scribe would write them, without word spaces, as a binary image.

Each letter is a set of polylines in a unit box: x to the right in units of the letter height,
y downwards from the top line (0) to the base line (1). Forms follow book hands of papyri: round
epsilon and sigma, cursive omega.
"""

from __future__ import annotations

import cv2
import numpy as np

Stroke = np.ndarray  # (points, 2) float, columns x and y

SUBPIXEL_BITS = 4
LINE_PITCH = 2.2  # letter heights from one base line to the next
LETTER_GAP = 0.36  # letter heights
COLUMN_WIDTH = 14.0  # letter heights
COLUMN_GAP = 1.5  # letter heights
PEN_WIDTH = 0.138  # letter heights: strokes of 14 to 22 px


def _line(*points: tuple[float, float]) -> Stroke:
    return np.array(points, dtype=np.float64)


def _arc(
    centre: tuple[float, float], radii: tuple[float, float], start: float, stop: float
) -> Stroke:
    """Sample an elliptic arc; angles in degrees, 0 to the right, growing clockwise on screen."""
    angles = np.radians(np.linspace(start, stop, 20))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + centre


GLYPHS: dict[str, list[Stroke]] = {
    "alpha": [_line((0, 1), (0.36, 0), (0.75, 1)), _line((0.14, 0.66), (0.6, 0.66))],
    "beta": [
        _line((0.05, 0), (0.05, 1)),
        _line((0.05, 0.02), (0.25, 0.02)),
        _arc((0.25, 0.25), (0.23, 0.23), -90, 90),
        _arc((0.27, 0.74), (0.3, 0.26), -90, 90),
        _line((0.05, 0.48), (0.27, 0.48)),
        _line((0.05, 1), (0.27, 1)),
    ],
    "gamma": [_line((0.05, 1), (0.05, 0.02), (0.6, 0.02))],
    "delta": [_line((0, 1), (0.38, 0), (0.8, 1), (0, 1))],
    "epsilon": [_arc((0.38, 0.5), (0.36, 0.5), 45, 315), _line((0.04, 0.5), (0.55, 0.5))],
    "zeta": [_line((0.03, 0.02), (0.6, 0.02), (0.02, 1), (0.65, 1))],
    "eta": [
        _line((0.05, 0), (0.05, 1)),
        _line((0.65, 0), (0.65, 1)),
        _line((0.05, 0.48), (0.65, 0.48)),
    ],
    "theta": [_arc((0.38, 0.5), (0.38, 0.5), 0, 360), _line((0.02, 0.5), (0.74, 0.5))],
    "iota": [_line((0.05, 0), (0.05, 1))],
    "kappa": [
        _line((0.05, 0), (0.05, 1)),
        _line((0.6, 0), (0.06, 0.55)),
        _line((0.22, 0.42), (0.66, 1)),
    ],
    "lambda": [_line((0, 1), (0.36, 0), (0.75, 1))],
    "mu": [_line((0, 1), (0.16, 0), (0.46, 0.72), (0.76, 0), (0.92, 1))],
    "nu": [_line((0.05, 1), (0.05, 0), (0.68, 1), (0.68, 0))],
    "xi": [
        _line((0.05, 0.02), (0.6, 0.02)),
        _line((0.12, 0.5), (0.53, 0.5)),
        _line((0.03, 1), (0.64, 1)),
    ],
    "omicron": [_arc((0.35, 0.5), (0.35, 0.42), 0, 360)],
    "pi": [
        _line((0.08, 1), (0.08, 0.02)),
        _line((0, 0.02), (0.74, 0.02)),
        _line((0.64, 0), (0.64, 1)),
    ],
    "rho": [
        _line((0.05, 0), (0.05, 1.15)),
        _line((0.05, 0.02), (0.25, 0.02)),
        _arc((0.25, 0.28), (0.27, 0.26), -90, 90),
        _line((0.05, 0.54), (0.25, 0.54)),
    ],
    "sigma": [_arc((0.38, 0.5), (0.36, 0.5), 50, 310)],
    "tau": [_line((0, 0.02), (0.74, 0.02)), _line((0.37, 0), (0.37, 1))],
    "upsilon": [_line((0, 0), (0.34, 0.5), (0.34, 1.1)), _line((0.34, 0.5), (0.68, 0))],
    "phi": [_arc((0.42, 0.5), (0.42, 0.32), 0, 360), _line((0.42, -0.2), (0.42, 1.2))],
    "chi": [_line((0, 0), (0.66, 1)), _line((0.64, 0), (0, 1))],
    "psi": [_arc((0.4, 0.12), (0.38, 0.5), 0, 180), _line((0.4, -0.15), (0.4, 1.15))],
    "omega": [_arc((0.24, 0.5), (0.24, 0.5), 230, -10), _arc((0.72, 0.5), (0.24, 0.5), 190, -50)],
}
# Rough letter frequencies of Greek prose, per mille, in the order of GLYPHS.
FREQUENCIES = (
    *(110, 6, 17, 18, 95, 3, 38, 12, 97, 38, 30, 34),
    *(97, 4, 97, 38, 43, 82, 84, 46, 8, 9, 2, 34),
)


def draw_text(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw columns of random letters over a whole sheet.

    Args:
        size: (height, width) of the image in px. Sheets too small for one line of letters 100 px
            high get smaller letters.
        rng: Chooses letters, their size (100 to 160 px) and how the hand wavers.

    Returns:
        bool (Y, X), true where there is ink.
    """
    image = np.zeros(size, dtype=np.uint8)
    letter_height = min(rng.uniform(100, 160), size[0] / 2, size[1] / 2)
    column_pitch = COLUMN_WIDTH + COLUMN_GAP
    for top in np.arange(0.4, size[0] / letter_height, LINE_PITCH):
        for left in np.arange(0.3, size[1] / letter_height, column_pitch):
            _draw_line(image, (left, top), letter_height, rng)
    return image.view(bool)


def _draw_line(
    image: np.ndarray,
    start: tuple[float, float],
    letter_height: float,
    rng: np.random.Generator,
) -> None:
    """Write one line of a column into uint8 (Y, X) `image`; `start` (x, y) in letter heights."""
    letters = list(GLYPHS.values())
    weights = np.array(FREQUENCIES) / sum(FREQUENCIES)
    x, y = start
    while x < start[0] + COLUMN_WIDTH and x * letter_height < image.shape[1]:
        strokes = letters[rng.choice(len(letters), p=weights)]
        scale = rng.normal(1.0, 0.05)
        origin = (x, y + rng.normal(0.0, 0.03))
        for stroke in strokes:
            waver = scale * (np.eye(2) + rng.normal(0.0, 0.035, (2, 2)))
            pixels = (stroke @ waver + origin) * letter_height * (1 << SUBPIXEL_BITS)
            thickness = max(1, round(PEN_WIDTH * letter_height * rng.uniform(0.92, 1.08)))
            polyline = np.round(pixels).astype(np.int32)
            cv2.polylines(image, [polyline], False, 1, thickness, cv2.LINE_8, SUBPIXEL_BITS)
        x += scale * max(stroke[:, 0].max() for stroke in strokes) + LETTER_GAP
