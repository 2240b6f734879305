"""Why an address can't be listened on, and what the operator can do about it.

For the start, which then ends, and for ``freeapi doctor``, which tries it. What this is not: it
listens to nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

_ADVICE: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: (
        "Another program, perhaps a gateway that still runs, has that port: end it, or choose "
        "another one"
    ),
    errno.EACCES: (
        "Ports below 1024 are for root: choose a higher one, and let a proxy or a redirection of "
        "ports lead to it"
    ),
    errno.EADDRNOTAVAIL: "No interface of this machine has that address: 0.0.0.0 stands for all",
}
_WORDS: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: "address already in use",
    errno.EACCES: "permission denied",
    errno.EADDRNOTAVAIL: "no such address here",
}


def listen_failure(host: str, port: int, error: OSError) -> str:
    """What happened, in words."""
    # A name that nobody can resolve has an error number of another kind.
    reason = _WORDS.get(error.errno or 0) or error.strerror or "it doesn't work"
    return f"can't listen on {host} port {port}: {reason}"


def listen_advice(setting: str, error: OSError) -> str:
    """What to do; ``setting`` is where the address comes from."""
    advice = _ADVICE.get(error.errno or 0, "It must be an address of this machine")
    return f"{advice} ({setting})."
