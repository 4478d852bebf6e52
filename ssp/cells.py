"""A layer of synthetic cells: where each structure is, as densities.

Cells stand side by side on glass, each with a nucleus. Distances are in um; a density is float32
(Z, Y, X), about 1 where a structure is dense. Every structure has a scale of its own: nuclei of 8
um, membranes of 0.3, filaments of 0.1.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

CELL_SPACING_UM = 11.0
HEIGHT_UM = 7.0
BELOW_UM = 1.0  # of medium between the lowest plane and the cells
STEP_UM = 0.15  # between the points that make up a filament


class CellLayer:
    """The cells of one image; structures are computed when they are first asked for.

    Args:
        shape: (Z, Y, X).
        voxel_size_um: (Z, Y, X).
        seed: Decides everything random, together with the name of a structure.

    Attributes:
        border: Distance from the border between cells, (1, Y, X).
        below: Distance from the lower side of the cells, negative under them, (Z, Y, X).
        above: Distance from the upper side, negative above them, (Z, Y, X).
        nuclei: Distance from the nearest nuclear envelope, negative inside, (Z, Y, X).
        nucleoli: Density of the nucleoli.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        voxel_size_um: tuple[float, float, float],
        seed: tuple[int, ...],
    ) -> None:
        self.shape = shape
        self.voxel_size_um = np.array(voxel_size_um)
        self._seed = seed
        self._draw_cells(self.random(0))
        self._draw_nuclei(self.random(1))

    def random(self, stream: int) -> np.random.Generator:
        """Return a generator of its own for each use, so that none depends on another."""
        return np.random.default_rng((*self._seed, stream))

    def _draw_cells(self, rng: np.random.Generator) -> None:
        """Place the cells and give them their sides."""
        extent = np.array(self.shape) * self.voxel_size_um
        self.centres = _jittered_grid(extent[1:], rng)
        z, y, x = (
            ((np.arange(n) + 0.5) * v).astype(np.float32)
            for n, v in zip(self.shape, self.voxel_size_um, strict=True)
        )
        plane = (1, *self.shape[1:])
        warp = [1.2 * self.texture(rng, plane, 4.0)[0] for _ in range(2)]
        places = np.stack([y[:, None] + warp[0], x + warp[1]], axis=-1)
        distances, nearest = cKDTree(self.centres).query(places, k=2)
        self.cell_of = nearest[..., 0]
        self.border = ((distances[..., 1] - distances[..., 0]) / 2).astype(np.float32)[None]
        height = min(HEIGHT_UM, 0.75 * extent[0])
        height = height * (0.8 + 0.2 * np.tanh(self.border / 3))
        self.height = height * (1 + 0.06 * self.texture(rng, plane, 5.0))
        bottom = min(BELOW_UM, 0.12 * extent[0])
        self.below = np.broadcast_to(z[:, None, None] - np.float32(bottom), self.shape)
        self.above = (self.height - self.below).astype(np.float32)
        self.brightness = rng.lognormal(0, 0.25, len(self.centres)).astype(np.float32)

    def _draw_nuclei(self, rng: np.random.Generator) -> None:
        """Give each cell a nucleus with two to four nucleoli."""
        self.nuclei = np.full(self.shape, 10, np.float32)
        distance = np.full(self.shape, 10, np.float32)
        self.nucleus_centres = np.empty((len(self.centres), 3))
        bottom = self.voxel_size_um[0] / 2 - self.below[0, 0, 0]
        height = float(self.height.mean())
        for index, (y, x) in enumerate(self.centres + rng.normal(0, 0.6, self.centres.shape)):
            centre = np.array([bottom + 0.47 * height, y, x])
            radii = np.array([rng.uniform(0.28, 0.36) * height, *rng.uniform(3.0, 4.4, 2)])
            angle = rng.uniform(0, np.pi)
            self.nucleus_centres[index] = centre
            _lower(self.nuclei, self.voxel_size_um, centre, radii, angle)
            for _ in range(rng.integers(2, 5)):
                offset = rng.uniform(-0.45, 0.45, 3) * radii
                radius = np.full(3, rng.uniform(0.6, 1.1))
                _lower(distance, self.voxel_size_um, centre + offset, radius, 0.0)
        self.nuclei += 0.12 * self.texture(rng, self.shape, 1.2)
        self.nucleoli = soft_step(-distance, 0.1)

    @cached_property
    def inside(self) -> np.ndarray:
        """Return where there is cell."""
        return soft_step(np.minimum(self.below, self.above), 0.15)

    @cached_property
    def cytoplasm(self) -> np.ndarray:
        """Return where there is cell and no nucleus."""
        return self.inside * soft_step(self.nuclei, 0.15)

    def texture(self, rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
        """Return smooth noise of mean 0 and deviation 1 with details of `scale` um."""
        sigma = [
            0 if n == 1 else scale / v / 2 for n, v in zip(shape, self.voxel_size_um, strict=True)
        ]
        noise = gaussian_filter(rng.standard_normal(shape, np.float32), sigma, mode="wrap")
        return noise / (noise.std() + np.float32(1e-12))

    def at(self, field: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Return the values of a field at points (..., 3) in um; those outside are taken inside."""
        index = np.floor(points / self.voxel_size_um).astype(int)
        index = np.clip(index, 0, np.array(field.shape) - 1)
        return field[tuple(np.moveaxis(index, -1, 0))]

    def paint(self, points: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
        """Return the density of points (N, 3) in um, each a bell of `sigma` um."""
        index = np.floor(points / self.voxel_size_um).astype(int)
        is_in = ((index >= 0) & (index < self.shape)).all(axis=1)
        flat = np.ravel_multi_index(tuple(index[is_in].T), self.shape)
        field = np.bincount(flat, weights[is_in], np.prod(self.shape)).reshape(self.shape)
        sharp = sigma / self.voxel_size_um
        peak = np.prod(np.sqrt(2 * np.pi) * np.maximum(sharp, 0.4))
        return (gaussian_filter(field, sharp) * peak).astype(np.float32)

    def walk(
        self,
        rng: np.random.Generator,
        starts: np.ndarray,
        directions: np.ndarray,
        length: float,
        bend: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return points of filaments (N, steps, 3) and 1 as long as they stay in the cytoplasm."""
        steps = max(2, round(length / STEP_UM))
        points = np.empty((len(starts), steps, 3))
        points[:, 0] = starts
        for step in range(1, steps):
            directions = directions + bend * rng.normal(size=directions.shape)
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            points[:, step] = points[:, step - 1] + STEP_UM * directions
        stays = self.at(self.cytoplasm, points) > 0.5
        return points, np.logical_and.accumulate(stays, axis=1).astype(float)

    def places(self, rng: np.random.Generator, where: np.ndarray, number: int) -> np.ndarray:
        """Return random points (N, 3) in um in the voxels of a mask (Z, Y, X)."""
        candidates = np.flatnonzero(where)
        if not len(candidates):
            return np.empty((0, 3))
        chosen = rng.choice(candidates, number)
        index = np.stack(np.unravel_index(chosen, self.shape), axis=1)
        return (index + rng.random((number, 3))) * self.voxel_size_um


def soft_step(distance: np.ndarray, width: float) -> np.ndarray:
    """Return 0 where a distance is negative, 1 where it is positive, and a slope of `width` um."""
    return (0.5 + 0.5 * np.tanh(distance / np.float32(width))).astype(np.float32)


def shell(distance: np.ndarray, width: float) -> np.ndarray:
    """Return 1 at distance 0, falling to 1/e at `width` um."""
    return np.exp(-np.square(distance / np.float32(width)), dtype=np.float32)


def _jittered_grid(extent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the centres of cells (N, 2) in um, some of them outside the image."""
    rows, columns = (int(length // CELL_SPACING_UM) + 4 for length in extent)
    row, column = np.mgrid[-2 : rows - 2, -2 : columns - 2]
    grid = np.stack([row, column + 0.5 * (row % 2)], axis=-1).reshape(-1, 2) * CELL_SPACING_UM
    return grid + rng.uniform(0, CELL_SPACING_UM, 2) + rng.normal(0, 1.6, grid.shape)


def _lower(
    field: np.ndarray,
    voxel_size_um: np.ndarray,
    centre: np.ndarray,
    radii: np.ndarray,
    angle: float,
) -> None:
    """Lower a field of distances to that from an ellipsoid turned about Z, where it is nearer.

    The distance is exact on the surface and good near it: |p/r| (|p/r| - 1) / |p/r^2|.
    """
    reach = radii.max() + 2.0
    start = np.maximum(np.floor((centre - reach) / voxel_size_um).astype(int), 0)
    stop = np.minimum(np.ceil((centre + reach) / voxel_size_um).astype(int), field.shape)
    if (stop <= start).any():
        return
    grids = np.ogrid[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    z, y, x = (
        (grid + 0.5) * v - c for grid, v, c in zip(grids, voxel_size_um, centre, strict=True)
    )
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    scaled = [part / r for part, r in zip((z, along, across), radii, strict=True)]
    near = np.sqrt(sum(part**2 for part in scaled))
    slope = np.sqrt(sum((part / r) ** 2 for part, r in zip(scaled, radii, strict=True)))
    box = field[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    np.minimum(box, near * (near - 1) / (slope + 1e-6), out=box, casting="same_kind")
