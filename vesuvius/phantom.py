"""A simple model of carbonised, inked papyrus in a CT volume.

One sheet, about 12 layers thick, drifts through the middle of the volume. Its upper ply has fibres
along x, its lower ply along y; fibres show as density and as relief of the surfaces, whose edges
are softened by partial volume. The sheet is cracked, its brightness changes over the fragment and,
as after beam hardening, over depth; air and every voxel's scanner noise surround it. Ink is a thin
film on the upper surface. It fills the relief of the fibres, hides their density, and dries into a
net of fine cracks; its mean brightness is nearly that of papyrus. So ink shows as a change of
texture near the surface and hardly in the histogram.

This is a model to exercise code and compare recipes with. It was not fitted to scans, and scores on
it say nothing about real papyrus.

Every voxel is a pure function of seed and position. The sheet is first made flat, in layers below
its upper surface, then bent: each column is shifted by its depth, the fraction of a layer by linear
interpolation, whole layers by indexing. The cracks of the ink never repeat; the fibres, the texture
of the papyrus, repeat approximately every 1024 px, displaced by a smooth wave of several px.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vesuvius.texture import CrackleTexture, FibreTexture, SmoothField, voxel_noise

SHEET_LAYERS = 12
MARGIN_LAYERS = 8  # air above and below the flat sheet, room for relief and soft edges


@dataclass(frozen=True)
class Physics:
    """Parameters of the model.

    Args:
        air: Intensity of air, of 65535.
        papyrus: Intensity of papyrus.
        drift_layers: Standard deviation of the sheet's depth over about 1000 px.
        cockle_layers: The same over about 150 px.
        thickness_layers: Standard deviation of the thickness.
        edge_layers: Depth over which a surface goes from air to papyrus.
        relief_layers: Standard deviation of the surface's height over fibres.
        fibre_contrast: Relative standard deviation of density over fibres.
        mottle: The same over blotches as wide as a letter's stroke.
        brightness: The same over about 1000 px.
        beam_hardening: Relative change of intensity from the middle to the first and last layer.
        noise: Standard deviation of the scanner's noise, in intensity.
        ink_layers: Thickness of the ink film.
        ink_density: Density of the film, relative to papyrus.
        crackle_layers: Standard deviation of the film's height over its cracks.
        crackle_contrast: Relative loss of density in the film's cracks.
        wear: Relative standard deviation of how well the ink is preserved from letter to letter.
        difficulty: 0: well preserved ink replaces the surface; 1: ink leaves no trace.
    """

    air: float = 11000.0
    papyrus: float = 31000.0
    drift_layers: float = 1.6
    cockle_layers: float = 0.4
    thickness_layers: float = 0.8
    edge_layers: float = 2.5
    relief_layers: float = 0.7
    fibre_contrast: float = 0.1
    mottle: float = 0.04
    brightness: float = 0.06
    beam_hardening: float = 0.04
    noise: float = 2200.0
    ink_layers: float = 2.5
    ink_density: float = 1.0
    crackle_layers: float = 0.5
    crackle_contrast: float = 0.15
    wear: float = 0.9
    difficulty: float = 0.6


class Phantom:
    """The voxels of a simulated fragment, any rows at a time.

    Args:
        papyrus_mask: bool (Y, X), where there is papyrus.
        ink_label: bool (Y, X), where there is ink; it shows only on papyrus.
        num_layers: Layers of the volume.
        seed: Non-negative seed.
        physics: Parameters of the model.
    """

    def __init__(
        self,
        papyrus_mask: np.ndarray,
        ink_label: np.ndarray,
        num_layers: int,
        seed: int,
        physics: Physics,
    ) -> None:
        size = papyrus_mask.shape
        rng = np.random.default_rng(seed)
        self.shape = (num_layers, *size)
        self._papyrus_mask = papyrus_mask
        self._ink_label = ink_label
        self._seed = seed
        self._physics = physics
        self._drift = SmoothField(rng, size, 500)
        self._cockle = SmoothField(rng, size, 75)
        self._thickness = SmoothField(rng, size, 200)
        self._brightness = SmoothField(rng, size, 500)
        self._mottle = SmoothField(rng, size, 12)
        self._preservation = SmoothField(rng, size, 80)
        self._crack_lines = SmoothField(rng, size, 60)
        self._crack_places = SmoothField(rng, size, 200)
        half = SHEET_LAYERS // 2
        self._upper_ply = FibreTexture(rng, size, half, is_horizontal=True)
        self._lower_ply = FibreTexture(rng, size, half, is_horizontal=False)
        self._crackle = CrackleTexture(rng, size)

    def read(self, y_start: int, y_stop: int) -> np.ndarray:
        """Return some rows of the volume: uint16 (Z, Y, X)."""
        num_layers, _, width = self.shape
        physics = self._physics
        columns = self._papyrus_columns(y_start, y_stop)
        bent, whole_depth = self._bend(self._flat_sheet(y_start, y_stop, columns), y_start, columns)
        pixels = np.arange(whole_depth.size).reshape(whole_depth.shape)
        volume = np.empty((num_layers, y_stop - y_start, width), dtype=np.uint16)
        for z in range(num_layers):
            layer = voxel_noise(self._seed, z, y_start, y_stop, width)
            layer *= np.float32(physics.noise)
            layer += np.float32(physics.air)
            index = np.clip(z - whole_depth, 0, len(bent) - 1)
            if index.size and index.min() < len(bent) - 1 and index.max() > 0:
                index *= whole_depth.size
                index += pixels
                layer[:, columns] += np.take(bent, index, mode="clip")
            layer *= np.float32(self._beam(z))
            np.clip(layer, 0, 65535, out=layer)
            volume[z] = layer
        return volume

    def read_infrared(self, y_start: int, y_stop: int) -> np.ndarray:
        """Return some rows of an infrared photograph, where ink is dark: uint8 (Y, X)."""
        fibres = self._upper_ply.read(y_start, y_stop, slice(None))[0]
        light = self._brightness.read(y_start, y_stop)
        papyrus = 140 + 12 * fibres + 8 * light + 5 * self._mottle.read(y_start, y_stop)
        ink = 45 + 4 * fibres
        photograph = np.where(self._ink_label[y_start:y_stop], ink, papyrus)
        photograph *= 1 - self._cracks(y_start, y_stop)
        photograph[~self._papyrus_mask[y_start:y_stop]] = 12
        return np.clip(photograph, 0, 255).astype(np.uint8)

    def _papyrus_columns(self, y_start: int, y_stop: int) -> slice:
        """Return the smallest range of columns that holds the papyrus of some rows."""
        found = np.flatnonzero(self._papyrus_mask[y_start:y_stop].any(axis=0))
        return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)

    def _flat_sheet(self, y_start: int, y_stop: int, columns: slice) -> np.ndarray:
        """Return the intensity above air of the flattened sheet.

        Returns:
            float32 (D, Y, X); index `MARGIN_LAYERS` along D is the mean upper surface. The first
            and the last two layers are zero, so that the sheet still ends in air when bent.
        """
        physics = self._physics
        upper = self._upper_ply.read(y_start, y_stop, columns)
        lower = self._lower_ply.read(y_start, y_stop, columns)
        ink = self._ink_strength(y_start, y_stop)[:, columns]
        crackle = self._crackle.read(y_start, y_stop, columns)
        height = self._surface_height(upper[0], crackle, ink)
        bottom = SHEET_LAYERS + physics.relief_layers * lower[-1]
        bottom += physics.thickness_layers * self._thickness.read(y_start, y_stop)[:, columns]
        ink_gain = (
            physics.ink_density - 1 - physics.crackle_contrast * (crackle - CrackleTexture.MEAN)
        )
        gain = self._gain(y_start, y_stop, columns)
        plies = np.concatenate([upper, lower])
        flat = np.zeros((SHEET_LAYERS + 2 * MARGIN_LAYERS + 1, *gain.shape), dtype=np.float32)
        for k in range(1, len(flat) - 2):
            depth = height + (k - MARGIN_LAYERS)
            inside = np.clip(depth / physics.edge_layers + 0.5, 0, 1)
            inside *= np.clip((bottom - (k - MARGIN_LAYERS)) / physics.edge_layers + 0.5, 0, 1)
            fibres = physics.fibre_contrast * plies[np.clip(k - MARGIN_LAYERS, 0, SHEET_LAYERS - 1)]
            film = ink * np.clip(physics.ink_layers + 0.5 - depth, 0, 1)
            np.multiply(1 + fibres + film * (ink_gain - fibres), inside, out=flat[k])
            flat[k] *= gain
        return flat

    def _ink_strength(self, y_start: int, y_stop: int) -> np.ndarray:
        """Return the share of the surface that ink has replaced, 0..1: float32 (Y, X)."""
        physics = self._physics
        preserved = 1 + physics.wear * self._preservation.read(y_start, y_stop)
        strength = np.clip((1 - physics.difficulty) * preserved, 0, 1)
        return strength * self._ink_label[y_start:y_stop]

    def _surface_height(
        self, fibres: np.ndarray, crackle: np.ndarray, ink: np.ndarray
    ) -> np.ndarray:
        """Return how far the upper surface rises above its mean, in layers: float32 (Y, X)."""
        physics = self._physics
        bare = physics.relief_layers * fibres
        film = (CrackleTexture.MEAN - crackle) * np.float32(
            physics.crackle_layers / CrackleTexture.STD
        )
        return bare + ink * (film - bare)

    def _gain(self, y_start: int, y_stop: int, columns: slice) -> np.ndarray:
        """Return the intensity above air of plain papyrus at each pixel: float32 (Y, X)."""
        physics = self._physics
        gain = 1 + physics.brightness * self._brightness.read(y_start, y_stop)
        gain += physics.mottle * self._mottle.read(y_start, y_stop)
        gain *= 1 - self._cracks(y_start, y_stop)
        gain *= self._papyrus_mask[y_start:y_stop]
        return gain[:, columns] * np.float32(physics.papyrus - physics.air)

    def _cracks(self, y_start: int, y_stop: int) -> np.ndarray:
        """Return 1 in a crack through the sheet and 0 elsewhere, softly: float32 (Y, X)."""
        distance = np.abs(self._crack_lines.read(y_start, y_stop))
        places = np.clip(2 * self._crack_places.read(y_start, y_stop) - 2, 0, 1)
        return np.clip(1.5 - 20 * distance, 0, 1) * places

    def _bend(
        self, flat: np.ndarray, y_start: int, columns: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shift each column by the fraction of its depth.

        Returns:
            The sheet, float32 (D, Y, X), and the whole layers (Y, X) of the depth that remain:
            layer z of the volume shows index `z - whole_depth` along D.
        """
        physics = self._physics
        y_stop = y_start + flat.shape[1]
        depth = (self.shape[0] - 1) / 2 - SHEET_LAYERS / 2 - MARGIN_LAYERS
        depth = depth + physics.drift_layers * self._drift.read(y_start, y_stop)[:, columns]
        depth += physics.cockle_layers * self._cockle.read(y_start, y_stop)[:, columns]
        whole = np.floor(depth)
        fraction = depth - whole
        for k in range(len(flat) - 1, 0, -1):
            flat[k] += fraction * (flat[k - 1] - flat[k])
        return flat, whole.astype(np.intp)

    def _beam(self, z: int) -> float:
        """Return the relative intensity of layer z."""
        middle = (self.shape[0] - 1) / 2
        return 1 + self._physics.beam_hardening * ((z - middle) / middle) ** 2
