"""A gateway reduced to its embedded model: run by tests that kill it.

It prints the child's process id and the socket's path, and then waits for its own death.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from freeapi.journal import Journal
from freeapi.local import LocalModel


async def main() -> None:
    """Start the model, say so, wait for ever."""
    model = await LocalModel.start(Journal(sys.stderr, "info", time.time))
    print(model.pid, model.socket_path, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
