"""``python -m tpvformer`` is the command ``tpvformer``."""

from __future__ import annotations

import sys

try:
    from tpvformer.cli import main

    status = main()
except KeyboardInterrupt:  # before the command had begun
    status = 130
sys.exit(status)
