"""What a fragment holds: how bright, how deep, how covered, and whether ink shows in intensity."""

from __future__ import annotations

from pathlib import Path

from core.files import write_json
from core.lock import holds, names_in
from core.page import write_page
from core.provenance import collect
from core.terminal import note
from vesuvius.analysis import Analysis, analyze_fragment, why_no_contrast
from vesuvius.analysis_page import TITLE, overview, overview_row, page_section, record
from vesuvius.claim import FEWEST_SHIFTS
from vesuvius.fragment import open_fragment
from vesuvius.sample_patches import check_patch_size
from vesuvius.statistics import note_low_contrast
from vesuvius.survey import BLOCK

RECORD, PAGE = "analysis.json", "index.html"


@holds("out")
def analyze(
    fragments: tuple[Path, ...],
    /,
    out: Path,
    shifts: int = 23,
    patches: int = 4,
    patch_size: int = 64,
    seed: int = 0,
) -> None:
    """Look into fragments before training on them: one page of plots, and the numbers as JSON.

    Intensities with and without ink and how far they lie apart, contrast of each layer, z profile,
    depth of the sheet, order of the layers, coverage of mask and label, sample patches in three
    planes; and whether the claim holds that intensities with and without ink look the same. Reads
    each volume once, in bands of rows; memory does not grow with the voxels. Without an ink label
    the parts about ink are left out.

    Args:
        fragments: Folders in Kaggle layout, scroll segments, TIFF layers, OME-Zarr or prepared
            volumes.
        out: Folder to write index.html and analysis.json into.
        shifts: How many far shifted copies of the ink label, which mean nothing where they lie, the
            ink label is held against.
        patches: How many sample patches of each kind are shown at most.
        patch_size: Their side in px, a multiple of 32.
        seed: Decides shifts and sample patches.

    Raises:
        FileNotFoundError: If a fragment does not exist.
        ValueError: If a fragment is bad, an option is out of range, or `out` holds something else.
    """
    _check_options(fragments, out, shifts, patches, seed)
    for path in fragments:  # all of them before the first is read
        check_patch_size(patch_size, open_fragment(path).papyrus_mask.shape)
    rows, sections, records = [], [], []
    for path in fragments:
        found = analyze_fragment(open_fragment(path), shifts, patches, patch_size, seed)
        rows.append(overview_row(found))
        sections.append(page_section(found))
        records.append(record(found))
        _say(found)
    options = {"shifts": shifts, "patches": patches, "patch_size": patch_size, "seed": seed}
    provenance = collect(options=options, block_px=BLOCK)
    write_json(out / RECORD, {"provenance": provenance, "fragments": records})
    write_page(out / PAGE, TITLE, [overview(rows), *sections])
    note(f"pictures in {out / PAGE}, numbers in {out / RECORD}")


def _say(found: Analysis) -> None:
    """Write the main findings to the terminal."""
    name = found.fragment.name
    note_low_contrast(found.fragment.path, found.mean_std[1])
    note(f"{name}: {found.layer_order}")
    if found.contrast is None:
        note(f"{name}: {why_no_contrast(found)}")
    else:
        note(f"{name}: {found.contrast.together}")
        note(f"{name}: {found.contrast.best_layer}")


def _check_options(
    fragments: tuple[Path, ...], out: Path, shifts: int, patches: int, seed: int
) -> None:
    """Raise ValueError if an option is out of range or `out` holds something else."""
    if not fragments:
        raise ValueError("no fragment given; name at least one folder")
    if shifts < FEWEST_SHIFTS:
        raise ValueError(
            f"shifts {shifts} is below {FEWEST_SHIFTS}, the fewest that tell chance from a "
            "difference; give more"
        )
    if patches < 0 or seed < 0:
        raise ValueError(f"patches {patches} or seed {seed} is negative; give 0 or more")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder for --out")
    if not names_in(out) <= {RECORD, PAGE}:
        raise ValueError(f"{out} holds other files than an analysis; choose another --out")
