"""RepMode's variants in the paper: the rows of Table 2 and the utilisations of Figure 4.

Each is a configuration, and differs from RepMode in nothing but what its name says.

Table 2 leaves two things open. "w/o Conv expert" is read as without all three, so that the two
averages remain; the 1x1x1 expert could also be called an average of size 1 and kept. The Gaussian
task embedding has as many numbers as there are tasks.

Reference: Zhou et al., RepMode, CVPR 2023, section 4.3, Table 2 and Figure 4.
"""

from __future__ import annotations

from collections.abc import Iterable

from core.choice import Computation
from core.gates import GateConfig
from core.gatrep import REPMODE_EXPERTS, Expert
from core.mode import Mixture
from ssp.networks.repmode import RepModeConfig

ORIGINAL = RepModeConfig()


def _of_experts(experts: Iterable[Expert]) -> RepModeConfig:
    return RepModeConfig(mixture=Mixture(experts=tuple(experts)))


def _gated_by(gate: GateConfig) -> RepModeConfig:
    return RepModeConfig(mixture=Mixture(gate=gate))


def _without_size(size: int) -> RepModeConfig:
    return _of_experts(expert for expert in REPMODE_EXPERTS if expert.size != size)


def _averaging(replacement: Expert) -> RepModeConfig:
    return _of_experts(
        replacement if expert.kind == "average" else expert for expert in REPMODE_EXPERTS
    )


def _computed(computation: Computation) -> RepModeConfig:
    return RepModeConfig(mixture=Mixture(computation=computation))


TABLE2: dict[str, RepModeConfig] = {
    "only in Dec.": RepModeConfig(gated="decoder"),
    "only in Enc.": RepModeConfig(gated="encoder"),
    "w/o 1x1x1 expert pair": _without_size(1),
    "w/o 3x3x3 expert pair": _without_size(3),
    "w/o 5x5x5 expert pair": _without_size(5),
    "w/o Conv expert": _of_experts(e for e in REPMODE_EXPERTS if e.kind != "conv"),
    "w/o Avgp-Conv expert": _of_experts(e for e in REPMODE_EXPERTS if e.kind != "average"),
    "w/o Avgp": _averaging(Expert("conv", 1)),
    "all use Avgp 3x3x3": _averaging(Expert("average", 3)),
    "all use Avgp 5x5x5": _averaging(Expert("average", 5)),
    "use Gauss. task embedding": _gated_by(GateConfig(code="gaussian")),
    "use two-layer FCN": _gated_by(GateConfig(hidden=6)),
    "use Sigmoid activation": _gated_by(GateConfig(activation="sigmoid")),
    "Input-dep. gating": _gated_by(GateConfig(sees="input")),
}

# The first and the last are one function, computed in two ways.
FIGURE4: dict[str, RepModeConfig] = {
    "complete utilization": _computed("gated"),
    "sparse routing": _computed("sparse"),
    "GatRep": _computed("merged"),
}
