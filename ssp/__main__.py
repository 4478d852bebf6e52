"""`python -m ssp`."""

from __future__ import annotations

import sys

from ssp.cli import main

sys.exit(main())
