"""Run the command ``tpvformer`` as ``python -m tpvformer``."""

from __future__ import annotations

import sys

try:
    from tpvformer.cli import main

    status = main()
except KeyboardInterrupt:  # before the command started
    status = 130
sys.exit(status)
