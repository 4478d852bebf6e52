"""The twelve structures of the Allen Institute's label-free collection, in the official order."""

from __future__ import annotations

STRUCTURES = {
    "alpha_tubulin": "microtubule",
    "beta_actin": "actin filament",
    "desmoplakin": "desmosome",
    "dna": "DNA",
    "fibrillarin": "nucleolus",
    "lamin_b1": "nuclear envelope",
    "membrane_caax_63x": "cell membrane",
    "myosin_iib": "actomyosin bundle",
    "sec61_beta": "endoplasmic reticulum",
    "st6gal1": "Golgi apparatus",
    "tom20": "mitochondria",
    "zo1": "tight junction",
}
