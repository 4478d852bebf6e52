"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `core.terminal.run` does
os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # training is tested on the CPU everywhere

hypothesis.settings.register_profile("any machine", deadline=None)  # however busy it is
hypothesis.settings.load_profile("any machine")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder of real samples: REPMODE_SAMPLE_DATA, or ../shared/data beside the checkout."""
    default = REPOSITORY.parent / "shared" / "data"
    path = Path(os.environ.get("REPMODE_SAMPLE_DATA", default))
    if not path.is_dir():
        pytest.skip(
            f"no real samples at {path}; to run this, set REPMODE_SAMPLE_DATA to their folder"
        )
    return path
