"""``python -m tpvformer`` is the command ``tpvformer``."""

from __future__ import annotations

import sys

from tpvformer.cli import main

sys.exit(main())
