"""``python -m freeapi.local SOCKET MODEL``: the child process of ``freeapi.local.model``.

By hand, it serves until its stdin ends, and says on stderr why if it can't.
"""

from __future__ import annotations

import sys

from freeapi.local.server import main

main(*sys.argv[1:])
