"""The tasks of a run: what its network is gated by, and which of them a fragment belongs to.

A network of experts has a gate for every task. There is one task for ink, or one for the ink of
every fragment or of every scan domain (scroll, energy, voxel size); beside ink there may be one for
the infrared photograph. A fragment of no known task is mapped by the mean of the gates for ink.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.config import check_literal

Kind = Literal["one", "ink-infrared", "fragment", "domain"]

INK = "ink"
INFRARED = "infrared"
UNKNOWN = "unknown"
RESERVED = (INFRARED, UNKNOWN)  # names that no task for ink may have


@dataclass(frozen=True)
class TaskConfig:
    """Which tasks one network learns.

    Args:
        kind: "one" for ink; "ink-infrared" for ink and the infrared photograph, where a fragment
            may lack either; "fragment" for one task per fragment; "domain" for one per domain.
        domains: Domain of every fragment, as fragment=domain: 1=scroll-a 2=scroll-a 3=scroll-b.
        infrared_per_ink: Infrared patches for each ink patch, the same number from every fragment
            that has a photograph.
    """

    kind: Kind = "one"
    domains: tuple[str, ...] = ()
    infrared_per_ink: float = 1.0

    def __post_init__(self) -> None:
        check_literal("tasks.kind", self.kind, Kind)
        if (self.kind == "domain") != bool(self.domains):
            raise ValueError(
                f"tasks.kind {self.kind!r} with {len(self.domains)} tasks.domains; kind 'domain' "
                "needs the domain of every fragment, as fragment=domain, and the others need none"
            )
        if not 0 < self.infrared_per_ink < float("inf"):
            raise ValueError(f"tasks.infrared_per_ink is {self.infrared_per_ink}; it is above 0")
        if self.infrared_per_ink != 1 and self.kind != "ink-infrared":
            raise ValueError(
                f"tasks.infrared_per_ink {self.infrared_per_ink} means nothing for tasks.kind "
                f"{self.kind!r}; it belongs to 'ink-infrared'"
            )
        _ = self.domain_of

    @property
    def domain_of(self) -> dict[str, str]:
        """Return the domain of each fragment by name.

        Raises:
            ValueError: If an entry is no fragment=domain, repeats a fragment or has a taken name.
        """
        found: dict[str, str] = {}
        for entry in self.domains:
            fragment, _, domain = entry.partition("=")
            if not fragment or not domain or fragment in found:
                raise ValueError(
                    f"tasks.domains {entry!r} is no fragment=domain, or names its fragment again; "
                    "give each fragment once, as 1=scroll-a"
                )
            _check_name(domain, f"tasks.domains {entry!r}")
            found[fragment] = domain
        return found

    def check_fragments(self, fragments: Sequence[str]) -> None:
        """Refuse fragments that this choice does not fit.

        Raises:
            ValueError: If the domains are not those of these fragments, or a fragment that is to
                be a task has a taken name.
        """
        domains = self.domain_of
        unknown = sorted(set(domains) - set(fragments))
        missing = sorted(set(fragments) - set(domains))
        if domains and unknown + missing:
            raise ValueError(
                f"tasks.domains names {', '.join(domains)}, the fragments are "
                f"{', '.join(fragments)}; give each of these a domain, and no others"
            )
        if self.kind == "fragment":
            for name in fragments:
                _check_name(name, f"fragment {name!r}")

    def ink_task(self, fragment: str) -> str:
        """Return the name of the task of a fragment's ink; UNKNOWN if it has no domain."""
        if self.kind == "fragment":
            return fragment
        return self.domain_of.get(fragment, UNKNOWN) if self.kind == "domain" else INK


def _check_name(name: str, what: str) -> None:
    """Raise ValueError if a task for ink is to have a name that is taken."""
    if name in RESERVED:
        raise ValueError(
            f"{what}: the name {name!r} is taken ({', '.join(RESERVED)} are); choose another"
        )


@dataclass(frozen=True)
class Tasks:
    """The tasks that a network was built for.

    Attributes:
        names: Of the tasks, in the order of their gates.
        config: What they follow from.
    """

    names: tuple[str, ...]
    config: TaskConfig

    @classmethod
    def of(cls, config: TaskConfig, fragments: Iterable[str]) -> Tasks:
        """Return the tasks to learn from the ink of some fragments and, if wanted, infrared."""
        names = dict.fromkeys(map(config.ink_task, fragments))
        return cls((*names, *([INFRARED] if config.kind == "ink-infrared" else [])), config)

    @property
    def of_ink(self) -> tuple[str, ...]:
        """Names of the tasks for ink."""
        return tuple(name for name in self.names if name != INFRARED)

    def index(self, name: str) -> int:
        """Return the place of a task's gate."""
        return self.names.index(name)

    def of_fragment(self, fragment: str) -> str:
        """Return the name of the learned task of a fragment's ink, or UNKNOWN if there is none."""
        name = self.config.ink_task(fragment)
        return name if name in self.of_ink else UNKNOWN

    def is_own(self, name: str, fragment: str) -> bool:
        """Tell whether a task is the one that learned a fragment's ink."""
        return name == self.of_fragment(fragment) != UNKNOWN

    def gates_of(self, fragment: str) -> tuple[int, ...]:
        """Return the places of the gates whose mean maps a fragment's ink."""
        return self.gates(self.of_fragment(fragment))

    def choose(self, wanted: str | None, fragment: str | None = None) -> str:
        """Return the name of the task to predict.

        Args:
            wanted: What the user asks for, if anything.
            fragment: Name of the fragment that is predicted, if any.

        Raises:
            ValueError: If there is no such task, or several for ink and none of the fragment.
        """
        if wanted is not None:
            self.gates(wanted)
            return wanted
        if len(self.of_ink) == 1:
            return self.of_ink[0]
        own = UNKNOWN if fragment is None else self.of_fragment(fragment)
        if own == UNKNOWN:
            raise ValueError(
                f"the model has a task for each of {', '.join(self.of_ink)}"
                + (f", and {fragment} is none of them" if fragment else "")
                + f"; choose with --task, or --task {UNKNOWN} for the mean of their gates"
            )
        return own

    def gates(self, name: str) -> tuple[int, ...]:
        """Return the places of the gates whose mean is that of a task.

        Args:
            name: Of a task, or UNKNOWN for all of ink.

        Raises:
            ValueError: If there is no such task.
        """
        if name == UNKNOWN:
            return tuple(map(self.index, self.of_ink))
        if name not in self.names:
            raise ValueError(
                f"the model has no task {name!r}; it has {', '.join(self.names)}, and {UNKNOWN} "
                "for the mean gate of those for ink"
            )
        return (self.index(name),)


def check_is_ink(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Refuse a prediction that is no map of ink.

    Raises:
        ValueError: If it is one of the infrared photograph.
    """
    if provenance.get("settings", {}).get("task") == INFRARED:
        raise ValueError(
            f"{folder} is a map of the infrared photograph and not of ink; predict the ink, "
            f"without --task {INFRARED}"
        )
