"""Wheels of this project and of what it needs, for a machine without network.

A wheel of pure Python is a zip of the installed files, so it is made of what is installed here: the
very code that was tried, and no network is needed. What is compiled is downloaded for Kaggle's
Python instead.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path, PurePath

from core.files import atomic_path
from core.terminal import DISTRIBUTION

PACKAGES = ("core", "vesuvius")  # what a kernel needs of this project
PURE = "Root-Is-Purelib: true"
UNIVERSAL = "-none-any.whl"
TIMESTAMP = (2020, 1, 1, 0, 0, 0)  # equal files give equal wheels
TIMEOUT_S = 600
_NOT_PACKED = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}  # of one installation


def gather(names: Sequence[str], folder: Path, python_version: str, platform: str) -> None:
    """Write the wheels of this project and of distributions into a folder.

    Args:
        names: Of the distributions, each without those it needs itself.
        folder: Where to write.
        python_version: For which compiled wheels are downloaded, "3.12".
        platform: The same, "manylinux_2_28_x86_64".

    Raises:
        ValueError: If the project is not installed, or an installed file was changed.
        RuntimeError: If a wheel has to be downloaded and cannot be.
    """
    pack_project(folder)
    compiled = [name for name in names if not pack_installed(name, folder)]
    if compiled:
        download(compiled, folder, python_version, platform)


def pack_project(folder: Path) -> Path:
    """Write this project's code, as it is here, as a wheel that asks for nothing else."""
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise ValueError(
            f"{DISTRIBUTION} is not installed, so its wheel has no version; `pip install -e .` in "
            "its folder"
        ) from error
    stem = f"{DISTRIBUTION.replace('-', '_')}-{found.version}"
    contents = {
        f"{stem}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {found.version}\n"
        ).encode(),
        f"{stem}.dist-info/WHEEL": f"Wheel-Version: 1.0\n{PURE}\nTag: py3-none-any\n".encode(),
    }
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for path in root.rglob("*.py"):
            contents[f"{package}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return _write(folder / f"{stem}-py3{UNIVERSAL}", f"{stem}.dist-info", contents)


def pack_installed(name: str, folder: Path) -> bool:
    """Write an installed distribution as a wheel, if it is here and pure Python.

    Returns:
        Whether it was.

    Raises:
        ValueError: If one of its files is not the one that was installed.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return False
    about = found.read_text("WHEEL") or ""
    if PURE not in about.splitlines() or not found.files:
        return False
    tags = [line.split()[1] for line in about.splitlines() if line.startswith("Tag: ")]
    pythons = ".".join(dict.fromkeys(tag.split("-")[0] for tag in tags))
    info = next(file.parts[0] for file in found.files if file.parts[0].endswith(".dist-info"))
    stem = info.removesuffix(".dist-info")
    _write(folder / f"{stem}-{pythons}{UNIVERSAL}", info, _installed_contents(found))
    return True


def download(names: Sequence[str], folder: Path, python_version: str, platform: str) -> None:
    """Download wheels, in the versions installed here where they are.

    Raises:
        RuntimeError: If pip cannot.
    """
    wanted = [_pinned(name) for name in names]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python_version}"]
    command += [f"--platform={tag}" for tag in tags(platform)]
    answer = subprocess.run(
        [*command, f"--dest={folder}", *wanted], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if answer.returncode:
        reasons = [line for line in answer.stderr.splitlines() if line.startswith("ERROR")]
        raise RuntimeError(
            f"pip cannot download {', '.join(wanted)} for Python {python_version} on "
            f"{platform} ({(reasons or ['no reason given'])[-1]}); connect to the network, or "
            "put the wheels into a folder and name it in PIP_FIND_LINKS"
        )


def tags(platform: str) -> list[str]:
    """Return a platform and the older ones whose wheels run on it, which pip does not know.

    Raises:
        ValueError: If it is no Linux with glibc.
    """
    match = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", platform)
    if not match:
        raise ValueError(f"platform {platform!r} is not known; give one as manylinux_2_28_x86_64")
    newest, machine = int(match[1]), match[2]
    since_2_5 = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    return [*since_2_5, *([f"manylinux2014_{machine}"] if newest >= 17 else [])]


def _pinned(name: str) -> str:
    """Return a requirement of the version installed here, or of any."""
    try:
        return f"{name}=={distribution(name).version}"
    except PackageNotFoundError:
        return name


def _installed_contents(found: Distribution) -> dict[str, bytes]:
    """Return the installed files of a distribution by their names in a wheel."""
    contents = {}
    for file in found.files or ():
        if file.parts[0] == ".." or file.suffix == ".pyc" or _is_of_installation(file):
            continue  # scripts are made from the entry points anew
        content = Path(str(file.locate())).read_bytes()
        if file.hash and file.hash.value != _digest(content):
            raise ValueError(
                f"{file.locate()} is not the file that was installed; install "
                f"{found.metadata['Name']} again"
            )
        contents[file.as_posix()] = content
    return contents


def _is_of_installation(file: PurePath) -> bool:
    return file.parts[0].endswith(".dist-info") and file.name in _NOT_PACKED


def _write(path: Path, info: str, contents: Mapping[str, bytes]) -> Path:
    """Write a wheel, whole or not at all, and return its path.

    Args:
        path: The file.
        info: Name of its folder of metadata.
        contents: Its files by name; the list of them is added.
    """
    record = "".join(
        f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in contents.items()
    )
    listed = {**contents, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in sorted(listed):
            member = zipfile.ZipInfo(name, TIMESTAMP)
            member.external_attr = 0o644 << 16
            archive.writestr(member, listed[name], zipfile.ZIP_DEFLATED)
    return path


def _digest(content: bytes) -> str:
    """Return a SHA-256 as lists of installed files have it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return digest.rstrip(b"=").decode()
