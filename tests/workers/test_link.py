"""What is said over the line arrives whole, in order, or the line is cut."""

from __future__ import annotations

import socket
import struct

import pytest

from freeapi.state.valkey_leases import Leased, Order
from freeapi.workers.link import (
    MESSAGE_BYTES_MAX,
    LeaseAnswer,
    LeaseAsk,
    LineCut,
    Link,
    Message,
    Orders,
    Ready,
    Reload,
    Report,
    hear_orders,
)
from tests.workers.lines import pair

ORDERS = Orders({"PORT": "8080"}, None, has_bank=True)
MESSAGES: list[Message] = [
    ORDERS,
    Reload("/run/model.sock"),
    Ready("127.0.0.1", 8080),
    Report(b"\x80" * 300_000, [{"tail": "AAAA", "requests": 3}]),
    LeaseAsk(7, [Order("all", "2026-11-23", 10, 5, 2, 1)]),
    LeaseAnswer(7, [Leased(5, 1, 0)]),
    LeaseAnswer(8, None),
]


async def test_each_message_arrives_as_it_was_said() -> None:
    """All kinds, large ones too, in their order."""
    ours, theirs = await pair()
    for message in MESSAGES:
        ours.say(message)
    assert [await theirs.hear() for _ in MESSAGES] == MESSAGES
    ours.close()
    theirs.close()


async def test_end_of_the_other_is_a_cut() -> None:
    """Whoever listens to a process that is gone is told so."""
    ours, theirs = await pair()
    theirs.say(Ready("h", 1))
    theirs.close()
    assert await ours.hear() == Ready("h", 1)
    with pytest.raises(LineCut):
        await ours.hear()
    ours.close()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!I", MESSAGE_BYTES_MAX + 1),
        struct.pack("!I", 3) + b"\xc1\xc1\xc1",
        struct.pack("!I", 10) + b"short",
    ],
    ids=["too long", "no message", "cut"],
)
async def test_nonsense_is_a_cut(data: bytes) -> None:
    """What is no message of ours isn't waited for or guessed at."""
    raw, end = socket.socketpair()
    link = await Link.over(end)
    raw.sendall(data)
    raw.close()
    with pytest.raises(LineCut):
        await link.hear()
    link.close()


async def test_orders_are_heard_before_there_is_a_loop() -> None:
    """The first message is read whole and nothing after it, from a plain socket."""
    ours, end = socket.socketpair()
    link = await Link.over(ours)
    link.say(ORDERS)
    link.say(Reload(None))
    assert hear_orders(end) == ORDERS
    theirs = await Link.over(end)
    assert await theirs.hear() == Reload(None)
    link.close()
    theirs.close()


def test_other_first_words_are_a_cut() -> None:
    """A worker whose supervisor is gone, or says something else, doesn't start."""
    ours, end = socket.socketpair()
    ours.close()
    with end, pytest.raises(LineCut):
        hear_orders(end)
