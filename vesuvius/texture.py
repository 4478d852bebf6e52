"""Random fields and textures that are pure functions of a seed and a position.

Nothing here keeps more than a coarse grid or one periodic tile in memory, and any rows can
be asked for on their own: the answer does not depend on which other rows were asked for, or in what
pieces. All arithmetic on whole rows is elementwise for that reason.
"""

from __future__ import annotations

import numpy as np

NOISE_ROWS = 32
# Standard deviation of a cubic B-spline through independent unit normals, averaged over positions.
_SPLINE_STD = 0.4794


class SmoothField:
    """A stationary Gaussian field with mean 0 and standard deviation 1, smooth at `spacing` px.

    It is the cubic B-spline surface over a coarse grid of random normals.

    Args:
        rng: Draws the grid.
        size: (height, width) of the sheet in px.
        spacing: Distance of grid points in px; features are about twice as wide.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], spacing: float) -> None:
        self.spacing = spacing
        height, width = (int(length / spacing) + 4 for length in size)
        grid = rng.standard_normal((height, width), dtype=np.float32) / np.float32(_SPLINE_STD)
        # Interpolated along x once; along y for each request.
        first, weights = self._spline(np.arange(size[1]))
        self._grid_rows = sum(weights[i] * grid[:, first + i] for i in range(4))

    def read(self, y_start: int, y_stop: int) -> np.ndarray:
        """Return the field on rows `y_start` to `y_stop`: float32 (Y, X)."""
        first, weights = self._spline(np.arange(y_start, y_stop))
        return sum(weights[i][:, None] * self._grid_rows[first + i] for i in range(4))

    def _spline(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first of four grid indices (N,) and the four weights (4, N) float32."""
        first = np.floor(positions / self.spacing).astype(np.intp)
        t = positions / self.spacing - first
        cube = t**3
        weights = [(1 - t) ** 3, 3 * cube - 6 * t**2 + 4, 3 * (t + t**2 - cube) + 1, cube]
        return first, np.stack(weights).astype(np.float32) / 6


class FibreTexture:
    """A slab of fibres side by side: unit normal values, correlated along fibres and in depth.

    A periodic tile is repeated in both directions; a smooth sideways displacement makes the fibres
    wavy and the repetition hard to see.

    Args:
        rng: Draws the tile and the displacement.
        size: (height, width) of the sheet in px.
        depth: Thickness of the slab in layers.
        is_horizontal: Whether fibres run along x; otherwise along y.
    """

    PERIOD = 1024
    # Weight and Gaussian sigmas in px, across and along: fibres, bundles of fibres, cells.
    COMPONENTS = ((0.75, 1.5, 60.0), (0.55, 5.0, 150.0), (0.4, 1.5, 5.0))
    DEPTH_LAYERS = 1.6  # Gaussian sigma over depth
    WAVE_PX = 14.0  # sideways displacement, standard deviation

    def __init__(
        self, rng: np.random.Generator, size: tuple[int, int], depth: int, *, is_horizontal: bool
    ) -> None:
        self.depth = depth
        self._is_horizontal = is_horizontal
        self._width = size[1]
        self._wave = SmoothField(rng, size, 500)
        self._tile = self._make_tile(rng, depth)

    def read(self, y_start: int, y_stop: int, columns: slice) -> np.ndarray:
        """Return the slab over some rows and columns: float32 (depth, Y, X)."""
        y = np.arange(y_start, y_stop, dtype=np.float32)[:, None]
        x = np.arange(self._width, dtype=np.float32)[None, columns]
        wave = self._wave.read(y_start, y_stop)[:, columns] * np.float32(self.WAVE_PX)
        across, along = (y + wave, x) if self._is_horizontal else (x + wave, y)
        lower = np.floor(across)
        fraction = across - lower
        row = lower.astype(np.intp)
        column = along.astype(np.intp) % self.PERIOD
        below = (row % self.PERIOD) * self.PERIOD + column
        above = ((row + 1) % self.PERIOD) * self.PERIOD + column
        flat_tile = self._tile.reshape(self.depth, -1)
        slab = np.empty((self.depth, *wave.shape), dtype=np.float32)
        for layer, values in zip(slab, flat_tile, strict=True):
            np.take(values, below, out=layer, mode="clip")
            layer += fraction * (np.take(values, above, mode="clip") - layer)
        return slab

    def _make_tile(self, rng: np.random.Generator, depth: int) -> np.ndarray:
        """Return a periodic tile of fibres along its last axis, float32 (depth, PERIOD, PERIOD)."""
        along = np.fft.rfftfreq(self.PERIOD)
        across = np.fft.fftfreq(self.PERIOD)[:, None]
        response = np.zeros((self.PERIOD, len(along)), dtype=np.float32)
        for weight, width, length in self.COMPONENTS:
            low_pass = _gaussian_response(across, width) * _gaussian_response(along, length)
            response += weight * low_pass / np.linalg.norm(low_pass)
        tile = rng.standard_normal((depth, self.PERIOD, self.PERIOD), dtype=np.float32)
        for layer in tile:
            layer[:] = np.fft.irfft2(np.fft.rfft2(layer) * response, layer.shape)
        layers = np.arange(depth)
        mix = np.exp(-0.5 * ((layers[:, None] - layers) / self.DEPTH_LAYERS) ** 2)
        tile = np.tensordot(mix.astype(np.float32), tile, axes=1)
        tile -= tile.mean(axis=(1, 2), keepdims=True)
        tile /= tile.std(axis=(1, 2), keepdims=True)
        return tile


def _gaussian_response(frequency: np.ndarray, sigma_px: float) -> np.ndarray:
    """Return the frequency response of a Gaussian blur; frequency in cycles per px."""
    return np.exp(-2 * (np.pi * frequency * sigma_px) ** 2)


class CrackleTexture:
    """A net of fine cracks around small plates, as in dried ink: 1 in a crack, 0 on a plate.

    Cracks are where the nearest two of a set of points, one at random in each cell of a square
    grid, are about equally far away. The net never repeats.

    Args:
        rng: Draws the points.
        size: (height, width) of the sheet in px.
    """

    PLATE_PX = 9.14  # side of a cell
    CRACK_PX = 2.2  # width of a crack at half its depth
    MEAN = 0.511  # of the net, and its standard deviation
    STD = 0.424
    _REACH = 2  # cells to look around for the nearest two points

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self._width = size[1]
        cells = [int(length / self.PLATE_PX) + 1 + 2 * self._REACH for length in size]
        points = rng.random((2, *cells), dtype=np.float32)
        points += np.indices(cells, dtype=np.float32) - self._REACH
        self._points = points * np.float32(self.PLATE_PX)

    def read(self, y_start: int, y_stop: int, columns: slice) -> np.ndarray:
        """Return the net over some rows and columns: float32 (Y, X)."""
        y, x = np.arange(y_start, y_stop), np.arange(self._width)[columns]
        row, column = ((place / self.PLATE_PX).astype(np.intp) for place in (y, x))
        y, x = y.astype(np.float32)[:, None], x.astype(np.float32)
        nearest = np.full((len(row), len(column)), np.inf, dtype=np.float32)  # squared distances
        second = nearest.copy()
        for i, j in np.ndindex(2 * self._REACH + 1, 2 * self._REACH + 1):
            point_y, point_x = self._points[:, row + i][:, :, column + j]
            distance = (point_y - y) ** 2 + (point_x - x) ** 2
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
        gap = np.sqrt(second) - np.sqrt(nearest)
        return np.clip(1.5 - gap / np.float32(self.CRACK_PX), 0, 1)


def voxel_noise(seed: int, layer: int, y_start: int, y_stop: int, width: int) -> np.ndarray:
    """Return unit normal noise of some rows of a layer, independent between voxels.

    Args:
        seed: Non-negative seed of the whole volume.
        layer: Index of the layer.
        y_start: First row.
        y_stop: One past the last row.
        width: Width of the volume in px.

    Returns:
        float32 (Y, X). Whole blocks of `NOISE_ROWS` rows are drawn, each from its own generator.
    """
    blocks = []
    for block in range(y_start // NOISE_ROWS, -(-y_stop // NOISE_ROWS)):
        rng = np.random.Generator(np.random.SFC64([seed, layer, block]))
        blocks.append(rng.standard_normal((NOISE_ROWS, width), dtype=np.float32))
    offset = y_start // NOISE_ROWS * NOISE_ROWS
    return np.concatenate(blocks)[y_start - offset : y_stop - offset]
