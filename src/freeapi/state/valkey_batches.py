"""What one turn of the event loop asks the store and tells it, in one call of one function.

``Batches`` takes questions and ends as they come, and sends them at the end of the turn; the store
decides them in that order (``lua/decide.lua``), and reads and writes each caller and each model
once. So a request's share of messages, system calls and the server's overhead is the smaller the
busier a gateway is.

What this is not: what an answer means is ``valkey_limits``', what it takes to ask again, too.

Invariants: each question is told once, of an answer or an error, though what follows another one's
answer should go wrong. An end is sent until it is confirmed: one whose connection broke is kept,
for ``repeat`` over the next. It is kept in memory until then: no more than the requests that were
in flight when the store went, since without it none begins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from freeapi.policy.fairness import WAITING_MAX, WAITING_PER_CALLER_MAX
from freeapi.state.valkey import Call, Store, StoreUnavailable
from freeapi.state.valkey_questions import Item, Question

#: A batch holds the server for as long as its items take it, some 20 us each.
BATCH_MAX: Final = 100
_ENCODER: Final = msgspec.msgpack.Encoder()
_ANSWERS: Final = msgspec.msgpack.Decoder(list[list[float]])


class _Batch(Call):
    """One turn's, in its order."""

    __slots__ = ("_batches", "items", "questions")

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self._batches = batches
        self.items: list[Item] = []
        #: Those of the items that are questions.
        self.questions: deque[Question] = deque()

    def answered(self, answer: object) -> None:
        self._batches.decided(self, answer)

    def failed(self, error: Exception) -> None:
        self._batches.undecided(self, error)


class Batches:
    """A gateway's, over one connection after the other."""

    def __init__(
        self, store: Store, namespace: bytes, node: str, now: Callable[[], float | bool]
    ) -> None:
        """Make it before ``store.start``. ``node`` is the gateway's name, ``now`` the time that the
        store is to go by; False: its own.
        """
        self._store = store
        self._namespace = namespace
        self._node = node
        self._now = now
        self._decide = store.know("meter", "lane", "tickets", "admit", "decide")
        self._loop = asyncio.get_running_loop()
        self._batch = _Batch(self)
        self._kept: list[Item] = []
        #: The number of the connection: questions of any other one aren't heard.
        self.epoch = 0
        #: How many ends the store hasn't confirmed yet.
        self.unconfirmed = 0

    def ask(self, question: Question) -> None:
        """Have it decided; ``question.told`` is called once."""
        self._batch.questions.append(question)
        self._add(question.item())

    def end(self, item: Item) -> None:
        """Tell it, now or when the store is back, until it has confirmed."""
        self.unconfirmed += 1
        self._add(item)

    def repeat(self) -> None:
        """Tell again, over a new connection, what the last one may have lost."""
        kept, self._kept = self._kept, []
        for end in kept:
            self._add(end)
        self.flush()

    def flush(self) -> None:
        """Send now what else would be sent at the end of this turn."""
        batch = self._batch
        if not batch.items:
            return
        self._batch = _Batch(self)
        limits = WAITING_MAX, WAITING_PER_CALLER_MAX
        argument = _ENCODER.encode((self._now(), self._node, self.epoch, *limits, batch.items))
        self._store.run(self._decide, self._namespace, argument, batch)

    def decided(self, batch: _Batch, packed: object) -> None:
        """The store has taken all of it, and answers each question."""
        self.unconfirmed -= len(batch.items) - len(batch.questions)
        if not batch.questions:
            return
        assert isinstance(packed, bytes)
        answers: list[list[float]] = _ANSWERS.decode(packed)
        for question, answer in zip(batch.questions, answers, strict=True):
            question.answer = answer
        self._tell_all(batch.questions)

    def undecided(self, batch: _Batch, error: Exception) -> None:
        """Nobody knows what became of it, or (StoreRefused) nothing has, and won't."""
        ends = [item for item in batch.items if item[0]]
        if isinstance(error, StoreUnavailable):
            self._kept += ends
        else:
            self.unconfirmed -= len(ends)
        for question in batch.questions:
            question.error = error
        self._tell_all(batch.questions)

    def _add(self, item: Item) -> None:
        items = self._batch.items
        if not items:
            self._loop.call_soon(self.flush)
        items.append(item)
        if len(items) == BATCH_MAX:
            self.flush()

    def _tell_all(self, questions: deque[Question]) -> None:
        try:
            while questions:
                questions.popleft().told()
        finally:
            if questions:  # a bug in what follows one answer must not keep the others waiting
                self._loop.call_soon(self._tell_all, questions)
