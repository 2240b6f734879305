"""Each reason for which an address can't be listened on has words and advice of its own."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from freeapi.listening import listen_advice, listen_failure


@pytest.mark.parametrize(
    ("number", "words", "advice"),
    [
        (errno.EADDRINUSE, "address already in use", "choose another one"),
        (errno.EACCES, "permission denied", "below 1024"),
        (errno.EADDRNOTAVAIL, "no such address here", "0.0.0.0"),
        (errno.ENETDOWN, os.strerror(errno.ENETDOWN), "an address of this machine"),
    ],
)
def test_reason_and_remedy_are_told(number: int, words: str, advice: str) -> None:
    """The sentence names the address and the reason, the advice the setting to change."""
    error = OSError(number, os.strerror(number))
    assert listen_failure("127.0.0.1", 80, error) == f"can't listen on 127.0.0.1 port 80: {words}"
    assert advice in listen_advice("HOST and PORT", error)
    assert listen_advice("HOST and PORT", error).endswith("(HOST and PORT).")


def test_name_that_nobody_knows_is_told() -> None:
    """The numbers of the resolver's errors are others, and its words are kept."""
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert listen_failure("x.invalid", 80, error).endswith(": Name or service not known")
