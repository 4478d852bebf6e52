"""The densities of the twelve structures, and of vesicles, in a layer of synthetic cells."""

from __future__ import annotations

import numpy as np

from ssp.cells import CellLayer, shell, soft_step

STREAMS = {"filaments": 10, "mitochondria": 11, "golgi": 12, "reticulum": 13, "fibres": 14}
STREAMS |= {"desmosomes": 15, "vesicles": 16, "chromatin": 17}


def microtubules(cells: CellLayer) -> np.ndarray:
    """Return thin filaments through each cell, many of them from beside its nucleus."""
    rng = cells.random(STREAMS["filaments"])
    hubs = np.repeat(_beside_nuclei(cells, rng, 0.6), 16, axis=0)
    others = cells.places(rng, cells.cytoplasm > 0.8, _number(cells, 0.3))
    starts = np.concatenate([hubs, others])
    directions = rng.normal(size=starts.shape) * (0.25, 1, 1)
    points, weights = cells.walk(rng, starts, directions, length=12.0, bend=0.1)
    weights *= np.minimum(np.arange(points.shape[1]) / 12, 1)  # else the hubs outshine the rest
    return _filaments(cells, points, weights, 0.1)


def actin(cells: CellLayer) -> np.ndarray:
    """Return straight fibres at the bottom of the cells and a thin cortex under their sides."""
    cortex = shell(cells.border, 0.35) * cells.inside * soft_step(cells.below - 3.0, 1.0)
    return _filaments(cells, *_fibres(cells), 0.12) + 0.3 * cortex


def desmosomes(cells: CellLayer) -> np.ndarray:
    """Return spots on the borders between cells."""
    rng = cells.random(STREAMS["desmosomes"])
    where = (cells.border < 0.3) & (cells.below > 1.5) & (cells.above > 0.3)
    points = cells.places(rng, where, _number(cells, 0.25))
    return cells.paint(points, rng.uniform(0.4, 1.0, len(points)), 0.2)


def dna(cells: CellLayer) -> np.ndarray:
    """Return nuclei, with chromatin of uneven density and darker nucleoli."""
    chromatin = cells.texture(cells.random(STREAMS["chromatin"]), cells.shape, 0.8)
    density = np.clip(0.75 + 0.18 * chromatin, 0, None) * (1 - 0.75 * cells.nucleoli)
    return soft_step(-cells.nuclei, 0.15) * density


def nucleoli(cells: CellLayer) -> np.ndarray:
    """Return the nucleoli."""
    return cells.nucleoli


def nuclear_envelope(cells: CellLayer) -> np.ndarray:
    """Return the shells of the nuclei."""
    return shell(cells.nuclei, 0.22) * cells.inside


def membrane(cells: CellLayer) -> np.ndarray:
    """Return the sides of the cells, brightest where two of them meet."""
    sides = shell(cells.border, 0.3) * cells.inside
    return sides + 0.45 * shell(cells.above, 0.35) + 0.3 * shell(cells.below, 0.35)


def myosin(cells: CellLayer) -> np.ndarray:
    """Return beads along the fibres of actin and a belt below the top of the borders."""
    points, weights = _fibres(cells)
    beads = weights * (np.arange(points.shape[1]) % 6 < 2)
    belt = shell(cells.border, 0.5) * shell(cells.above - 1.0, 0.6)
    return _filaments(cells, points, beads, 0.15) + 0.6 * belt


def reticulum(cells: CellLayer) -> np.ndarray:
    """Return a network of sheets through the cytoplasm, densest around the nucleus."""
    sheets = shell(cells.texture(cells.random(STREAMS["reticulum"]), cells.shape, 1.0), 0.45)
    fading = np.exp(-np.maximum(cells.nuclei, 0) / 4, dtype=np.float32)
    return cells.cytoplasm * fading * sheets + 0.5 * shell(cells.nuclei - 0.2, 0.25) * cells.inside


def golgi(cells: CellLayer) -> np.ndarray:
    """Return a cluster of small bodies beside each nucleus."""
    rng = cells.random(STREAMS["golgi"])
    middles = np.repeat(_beside_nuclei(cells, rng, 1.6), 18, axis=0)
    points = middles + rng.normal(size=middles.shape) * (0.6, 1.1, 1.1)
    weights = rng.uniform(0.3, 1.0, len(points)) * (cells.at(cells.cytoplasm, points) > 0.5)
    return cells.paint(points, weights, 0.28)


def mitochondria(cells: CellLayer) -> np.ndarray:
    """Return short bent rods in the cytoplasm."""
    rng = cells.random(STREAMS["mitochondria"])
    starts = cells.places(rng, cells.cytoplasm > 0.8, _number(cells, 0.35))
    directions = rng.normal(size=starts.shape) * (0.4, 1, 1)
    points, weights = cells.walk(rng, starts, directions, length=3.0, bend=0.18)
    return np.minimum(_filaments(cells, points, weights, 0.22), 1)


def tight_junction(cells: CellLayer) -> np.ndarray:
    """Return thin lines along the top of the borders."""
    return shell(cells.border, 0.3) * shell(cells.above - 0.5, 0.4)


def vesicles(cells: CellLayer) -> np.ndarray:
    """Return droplets, which no label shows and transmitted light shows best."""
    rng = cells.random(STREAMS["vesicles"])
    points = cells.places(rng, cells.cytoplasm > 0.9, _number(cells, 0.12))
    return cells.paint(points, rng.uniform(0.3, 1.0, len(points)), 0.3)


DENSITIES = {
    "alpha_tubulin": microtubules,
    "beta_actin": actin,
    "desmoplakin": desmosomes,
    "dna": dna,
    "fibrillarin": nucleoli,
    "lamin_b1": nuclear_envelope,
    "membrane_caax_63x": membrane,
    "myosin_iib": myosin,
    "sec61_beta": reticulum,
    "st6gal1": golgi,
    "tom20": mitochondria,
    "zo1": tight_junction,
}


def _number(cells: CellLayer, per_um2: float) -> int:
    """Return how many things there are, from their number on each square um of the image."""
    area = np.prod(np.array(cells.shape[1:]) * cells.voxel_size_um[1:])
    return max(1, round(float(area) * per_um2))


def _beside_nuclei(cells: CellLayer, rng: np.random.Generator, distance: float) -> np.ndarray:
    """Return a point (N, 3) in um beside each nucleus, at a distance from its envelope."""
    angles = rng.uniform(0, 2 * np.pi, len(cells.centres))
    outwards = np.stack([np.zeros_like(angles), np.sin(angles), np.cos(angles)], axis=1)
    return cells.nucleus_centres + (4.2 + distance) * outwards


def _fibres(cells: CellLayer) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (N, steps, 3) and weights of straight fibres at the bottom of the cells."""
    rng = cells.random(STREAMS["fibres"])
    angles = np.repeat(rng.uniform(0, np.pi, len(cells.centres)), 9)
    along = np.stack([np.zeros_like(angles), np.sin(angles), np.cos(angles)], axis=1)
    across = np.stack([np.zeros_like(angles), np.cos(angles), -np.sin(angles)], axis=1)
    middles = np.repeat(cells.nucleus_centres, 9, axis=0)
    middles[:, 0] += 0.35 - cells.at(cells.below, middles)
    middles += rng.uniform(-4.5, 4.5, (len(middles), 1)) * across
    starts = middles - rng.uniform(2.0, 5.5, (len(middles), 1)) * along
    points, weights = cells.walk(rng, starts, along, length=8.0, bend=0.01)
    return points, weights


def _filaments(
    cells: CellLayer, points: np.ndarray, weights: np.ndarray, sigma: float
) -> np.ndarray:
    """Return the density of filaments given by points (N, steps, 3)."""
    return cells.paint(points.reshape(-1, 3), weights.reshape(-1), sigma)
