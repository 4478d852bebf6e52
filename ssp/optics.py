"""What a microscope sees of synthetic cells: transmitted light and fluorescence.

Transmitted light follows the weak-object approximation: a phase step at a distance d from the plane
in focus changes the intensity, at each spatial frequency k, by 2 sin(pi lambda d k^2 / n) times the
phase, under an envelope for partly coherent light. So a transparent body vanishes in focus and is
bright on one side of it and dark on the other.

Reference: Streibl, "Three-dimensional imaging by a microscope", JOSA A 2, 1985.

Shape legend: Z planes, Y rows, X columns.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import gaussian_filter

from ssp import structures
from ssp.cells import CellLayer, shell, soft_step

WAVELENGTH_UM = 0.55
MEDIUM_INDEX = 1.34
CUTOFF_PER_UM = 1.6  # where the contrast has fallen to 1/e
COHERENT_UM = 4.0  # depth over which phases still interfere at half the cut-off
ABSORPTION = 0.06  # of the phase; a little contrast remains in focus
MARGIN_UM = 4.0
LIGHT = 12000.0  # counts of the bare field
PHOTONS_PER_COUNT = 0.8
BACKGROUND = 100.0
BRIGHT = 2400.0  # counts of the 99.9th percentile of fluorescence


def transmitted_light(cells: CellLayer, rng: np.random.Generator) -> np.ndarray:
    """Return a focus series of bright-field images, uint16 (Z, Y, X)."""
    step_um = float(cells.voxel_size_um[0])
    phase = (2 * np.pi / WAVELENGTH_UM * step_um) * refractive_index(cells)
    contrast = defocused(phase, tuple(cells.voxel_size_um))
    y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in cells.shape[1:])]
    tilt = rng.uniform(-0.02, 0.02, 2)
    field = 1 + tilt[0] * y + tilt[1] * x - 0.03 * (x**2 + y**2)
    return _camera(LIGHT * np.maximum(field * (1 + contrast), 0.05), rng)


def refractive_index(cells: CellLayer) -> np.ndarray:
    """Return by how much cells break light more than the medium does, float32 (Z, Y, X).

    Nuclei, nucleoli, sides and vesicles stand out; filaments hardly do, as in real cells.
    """
    grain = cells.texture(cells.random(20), cells.shape, 0.6)
    index = 0.012 * cells.inside + 0.0025 * grain * cells.cytoplasm  # nuclei are smooth
    index -= 0.006 * cells.inside * soft_step(-cells.nuclei, 0.2)
    index += 0.02 * cells.nucleoli + 0.008 * structures.nuclear_envelope(cells)
    index += 0.006 * shell(cells.border, 0.35) * cells.inside
    index += 0.007 * structures.mitochondria(cells) + 0.004 * structures.reticulum(cells)
    index += 0.004 * structures.golgi(cells) + 0.028 * structures.vesicles(cells)
    index += 0.0025 * structures.actin(cells) + 0.0008 * structures.microtubules(cells)
    return index


def defocused(phase: np.ndarray, voxel_size_um: tuple[float, float, float]) -> np.ndarray:
    """Return the relative change of intensity in each plane, float32 (Z, Y, X).

    Args:
        phase: What each plane adds to the phase of light, in radians (Z, Y, X).
        voxel_size_um: (Z, Y, X).
    """
    step_um, *pixel_um = voxel_size_um
    size = [
        next_fast_len(n + 2 * round(MARGIN_UM / v), True)
        for n, v in zip(phase.shape[1:], pixel_um, strict=True)
    ]
    margins = [(0, 0), *((0, total - n) for total, n in zip(size, phase.shape[1:], strict=True))]
    spectrum = rfft2(np.pad(phase, margins, mode="reflect"))
    k2 = (
        np.fft.fftfreq(size[0], pixel_um[0])[:, None] ** 2
        + np.fft.rfftfreq(size[1], pixel_um[1]) ** 2
    )
    image = np.zeros_like(spectrum)
    reach = min(phase.shape[0] - 1, round(2 * COHERENT_UM / step_um))
    for offset in range(-reach, reach + 1):
        transfer = transfer_function(offset * step_um, k2).astype(np.float32)
        focus = slice(max(0, -offset), phase.shape[0] - max(0, offset))
        source = slice(max(0, offset), phase.shape[0] - max(0, -offset))
        image[focus] += transfer * spectrum[source]
    contrast = irfft2(image, s=size)[:, : phase.shape[1], : phase.shape[2]]
    return contrast.astype(np.float32)


def transfer_function(defocus_um: float, k2: np.ndarray) -> np.ndarray:
    """Return the contrast of a phase out of focus, at squared frequencies `k2` in 1/um^2."""
    angle = np.pi * WAVELENGTH_UM * defocus_um * k2 / MEDIUM_INDEX
    resolution = np.exp(-k2 / CUTOFF_PER_UM**2)
    coherence = np.exp(-((defocus_um / COHERENT_UM) ** 2) * (0.25 + k2 / CUTOFF_PER_UM**2))
    return (2 * np.sin(angle) - 2 * ABSORPTION * np.cos(angle)) * resolution * coherence


def fluorescence(cells: CellLayer, density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a stack of fluorescence images of a density, uint16 (Z, Y, X)."""
    glow = density * cells.brightness[cells.cell_of]
    sharp = gaussian_filter(glow, np.array((0.35, 0.13, 0.13)) / cells.voxel_size_um)
    haze = gaussian_filter(glow, np.array((1.5, 0.8, 0.8)) / cells.voxel_size_um)
    light = sharp + 0.25 * haze
    peak = max(float(np.percentile(light, 99.9)), 1e-6)
    return _camera(BACKGROUND + BRIGHT * light / peak, rng)


def _camera(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return counts with the noise of photons and of the camera, uint16."""
    noisy = rng.standard_normal(counts.shape, np.float32)
    noisy *= np.sqrt(counts / PHOTONS_PER_COUNT + 9)
    return np.clip(np.rint(noisy + counts), 0, 65535).astype(np.uint16)
