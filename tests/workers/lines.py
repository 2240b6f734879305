"""A line whose two ends are in one process."""

from __future__ import annotations

import socket

from freeapi.workers.link import Link


async def pair() -> tuple[Link, Link]:
    """The supervisor's end and the worker's."""
    ours, theirs = socket.socketpair()
    return await Link.over(ours), await Link.over(theirs)
