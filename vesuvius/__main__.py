"""`python -m vesuvius`."""

from __future__ import annotations

import sys

from vesuvius.cli import main

sys.exit(main())
