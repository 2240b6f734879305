"""Ports for programs that can't tell which one they took."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Final

#: Below those that the kernel gives to outgoing connections, of which the tests make thousands: one
#: of them could take the port before the program does. Source: ip(7), ip_local_port_range.
_FIRST, _LAST = 20_000, 32_000
#: Each process has its own way through them, so that two that run at the same time don't meet.
_NEXT: Final = itertools.count(os.getpid() * 97)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, another one at each call."""
    while True:
        port = _FIRST + next(_NEXT) % (_LAST - _FIRST)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
