"""A Python with a stated set of distributions and no network, to try in it what is packed.

The base set is taken from the environment this runs in: each distribution and what it needs is
linked, so nothing is downloaded or copied, and nothing else of that environment can be imported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

UNSHARE = ("unshare", "--user", "--map-root-user", "--net")
# What decides how numbers are computed here, and where the GPU is found.
KEPT_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
)
# Without namespaces of the kernel Python's sockets are refused; libraries in C could still connect.
_NO_NETWORK = """import socket

def refuse(*_, **__):
    raise OSError("the network is cut off")

for name in ("connect", "connect_ex", "sendto", "sendmsg", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
"""


@dataclass(frozen=True)
class CleanEnvironment:
    """A Python of its own.

    Attributes:
        folder: Where it is.
        base: Versions of its distributions by name.
        has_namespace: Whether the network is cut off by the system, and not in Python alone.
    """

    folder: Path
    base: Mapping[str, str]
    has_namespace: bool

    @property
    def isolation(self) -> str:
        """How the network is cut off, in words."""
        return " ".join(UNSHARE) if self.has_namespace else "Python's sockets refused"

    def run(self, script: Path, cwd: Path, log: Path, variables: Mapping[str, str]) -> int:
        """Run a script and return its exit code.

        Args:
            script: Its path.
            cwd: Where it runs.
            log: File for all it says.
            variables: Of its environment, beside those that are the same everywhere.
        """
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        fixed = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.defpath}",
            "HOME": str(home),
            "TMPDIR": str(home),
            "LANG": "C.UTF-8",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        command = [str(self.folder / "bin" / "python"), str(script.absolute())]
        if self.has_namespace:
            command = [*UNSHARE, "--", *command]
        with log.open("w", encoding="utf-8") as file:
            return subprocess.run(
                command,
                cwd=cwd,
                env=kept | fixed | variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            ).returncode


def make_environment(
    folder: Path,
    base: Iterable[str],
    without: Iterable[str] = (),
    has_namespace: bool | None = None,
) -> CleanEnvironment:
    """Return a new environment.

    Args:
        folder: Where to make it; it must not exist.
        base: Distributions to have, each with all it needs.
        without: Distributions not to have although they are needed: they are to be installed.
        has_namespace: Whether the system cuts the network off; by default where it lets us.

    Raises:
        RuntimeError: If Python cannot make environments with pip, or a distribution is not here.
    """
    found = closure(base, {canonical(name) for name in without})
    answer = subprocess.run(
        [sys.executable, "-m", "venv", str(folder.absolute())], capture_output=True, text=True
    )
    if answer.returncode:
        reason = (answer.stdout + answer.stderr).strip().splitlines() or ["no reason given"]
        raise RuntimeError(
            f"{sys.executable} -m venv failed ({reason[-1]}); on Debian and Ubuntu install "
            "python3-venv"
        )
    (site,) = folder.glob("lib/python*/site-packages")
    # Beside site-packages, so that pip never takes out what is only linked.
    linked = folder.absolute() / "base"
    linked.mkdir()
    for one in found.values():
        _link(one, linked)
    (site / "base.pth").write_text(f"{linked}\n")
    is_cut = can_unshare() if has_namespace is None else has_namespace
    if not is_cut:
        (site / "no_network.py").write_text(_NO_NETWORK)
        (site / "no_network.pth").write_text("import no_network\n")
    versions = {name: one.version for name, one in sorted(found.items())}
    return CleanEnvironment(folder.absolute(), versions, is_cut)


def can_unshare() -> bool:
    """Tell whether this user may run a command without network."""
    if shutil.which(UNSHARE[0]) is None:
        return False
    return subprocess.run([*UNSHARE, "--", "true"], capture_output=True).returncode == 0


def closure(names: Iterable[str], without: set[str]) -> dict[str, Distribution]:
    """Return distributions and all they need, as far as it is installed, by name.

    Raises:
        RuntimeError: If one of the names is not installed.
    """
    found: dict[str, Distribution] = {}
    wanted = list(names)
    for name in wanted:
        try:
            distribution(name)
        except PackageNotFoundError as error:
            raise RuntimeError(f"{name} is not installed here, so it cannot be linked") from error
    while wanted:
        name = canonical(wanted.pop())
        if name in found or name in without:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # needed elsewhere: by another system or Python
            continue
        for requirement in found[name].requires or ():
            if "extra ==" not in requirement:
                wanted.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    return found


def canonical(name: str) -> str:
    """Return how a name of a distribution is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _link(found: Distribution, folder: Path) -> None:
    """Link all that a distribution has beside its scripts into a folder."""
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(found.locate_file(top))).absolute())
