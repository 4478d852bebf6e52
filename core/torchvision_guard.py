"""Make `import torchvision` work where it was built for another torch.

A torchvision built for CUDA beside a CPU torch (or any other mismatched pair) cannot load its
compiled operators and then fails at import, taking timm and segmentation_models_pytorch with it.
Neither needs those operators, so declaring the missing schemas is enough to import them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a Library withdraws its operators when collected


def ensure_torchvision() -> None:
    """Make torchvision importable; do nothing where it is healthy or not installed.

    Call this before the first import of timm or segmentation_models_pytorch. On a mismatched pair
    torchvision's models and transforms then work, its compiled operators (`nms`) still do not.

    Raises:
        RuntimeError: If torchvision fails to import for another reason.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _declare_operators()
        importlib.import_module("torchvision")


def _declare_operators() -> None:
    """Declare the operators that torchvision registers kernels for, and forget its half import."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    library.define(f"nms{_SIGNATURE}")
    library.define(f"qnms{_SIGNATURE}")
    _declared.append(library)
