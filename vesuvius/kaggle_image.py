"""What Kaggle's image for Python holds of what this project needs, and what it lacks.

The image is built on that of Colab, whose list is published in googlecolab/backend-info, with the
additions in Kaggle/docker-python; both were read in 2026. It changes without notice: what is named
here as lacking is packed even where a newer image has it.
"""

from __future__ import annotations

PYTHON_VERSION = "3.12"
PLATFORM = "manylinux_2_28_x86_64"

HAS = (
    "accelerate",
    "albumentations",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "rich",
    "safetensors",
    "scipy",
    "tensorboard",
    "tifffile",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
    "typing_extensions",
)

# Needed to train and to predict from TIFF layers. OME-Zarr and compressed layers would need zarr
# and imagecodecs, but the competition's layers are neither.
LACKS = ("docstring_parser", "segmentation_models_pytorch", "typeguard", "tyro")
