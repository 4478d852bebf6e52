"""Small files of every format, for tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import zarr

from ssp.train import train
from tests.ssp.cells import prepared, tiny_recipe


def noise(shape: tuple[int, ...], seed: int = 0, dtype: type = np.uint16) -> np.ndarray:
    """Return random voxels that use the whole range of an integer type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def write_ome_tiff(path, voxels, axes="CZYX", size_um=(0.3, 0.1, 0.1), names=None, **options):
    """Write an OME-TIFF; `size_um` None leaves the voxel size out."""
    metadata = {"axes": axes}
    if size_um is not None:
        metadata |= {f"PhysicalSize{a}": s for a, s in zip("ZYX", size_um, strict=True)}
        metadata |= {f"PhysicalSize{a}Unit": "µm" for a in "ZYX"}
    if names:
        metadata["Channel"] = {"Name": list(names)}
    tifffile.imwrite(path, voxels, ome=True, metadata=metadata, **options)
    return path


def write_czi(path, voxels_TCZYX, size_um=(0.3, 0.1, 0.1), names=None, scenes=1):
    """Write a CZI; scene s holds the voxels plus s, beside each other."""
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as document:
        for t, c, z in np.ndindex(*voxels_TCZYX.shape[:3]):
            for s in range(scenes):
                document.write(
                    voxels_TCZYX[t, c, z][..., None] + voxels_TCZYX.dtype.type(s),
                    plane={"T": t, "C": c, "Z": z},
                    scene=s,
                    location=(s * 1000, 0),
                )
        scale = {} if size_um is None else dict(zip("zyx", size_um, strict=True))
        document.write_metadata(
            "test",
            channel_names=dict(enumerate(names or ())),
            **{f"scale_{axis}": size * 1e-6 for axis, size in scale.items()},
        )
    return path


def write_ome_zarr(
    path: Path, voxels, axes="tczyx", size_um=(0.3, 0.1, 0.1), names=(), zarr_format=2
):
    """Write an OME-Zarr, 0.4 for Zarr format 2 and 0.5 for 3."""
    group = zarr.create_group(path, zarr_format=zarr_format)
    array = group.create_array("0", shape=voxels.shape, dtype=voxels.dtype)
    array[:] = voxels
    units = {} if size_um is None else {"unit": "micrometer"}
    described = [{"name": a, **(units if a in "zyx" else {})} for a in axes]
    sizes = dict(zip("zyx", size_um or (1, 1, 1), strict=True))
    scale = {"type": "scale", "scale": [sizes.get(a, 1) for a in axes]}
    image = {"axes": described, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    stored = {"multiscales": [image]}
    if names:
        stored["omero"] = {"channels": [{"label": name} for name in names]}
    group.attrs.update(stored if zarr_format == 2 else {"ome": {"version": "0.5", **stored}})
    return path


@pytest.fixture(scope="session")
def files() -> SimpleNamespace:
    """The functions that write small files."""
    return SimpleNamespace(
        noise=noise,
        write_ome_tiff=write_ome_tiff,
        write_czi=write_czi,
        write_ome_zarr=write_ome_zarr,
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Prepared cells of two structures."""
    return prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def run(data, tmp_path_factory) -> Path:
    """Run folder of a small RepMode trained on them for two epochs."""
    out = tmp_path_factory.mktemp("runs") / "repmode"
    train(data, out, tiny_recipe())
    return out
