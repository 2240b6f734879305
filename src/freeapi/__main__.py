"""``python -m freeapi``."""

from __future__ import annotations

import sys

from freeapi.cli import main

sys.exit(main())
