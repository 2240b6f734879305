"""The ledger: what is leased of each cap, on disk before any of it may be reserved.

``Ledger`` is the file: one row for each scope and day or month, in SQLite, and a lock so that one
process has it. ``Purse`` is its edge to the event loop: it lets requests reserve, and keeps money
leased ahead by writing in a thread of its own.

What this is not: no decision about money (``policy/budget``), and no record of requests or callers:
the rows hold sums.

Invariants:
- Nothing is reserved out of money whose lease isn't written and synced.
- The event loop never waits for the disk.
- Requests that wait for a lease are served in their order, before those that come later.
- While nothing can be written, what is leased may be spent, and nothing more.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from freeapi.errors import FreeApiError, LedgerUnavailable, ShuttingDown
from freeapi.policy.budget import Budget, Caps, Grant, Reservation, Status

#: The layout of the file; another one is another program's.
VERSION: Final = 1
#: After a failed write; a full disk shouldn't be hammered, nor the end of it be missed for long.
RETRY_S: Final = 1.0

_FILE: Final = "ledger.db"
_SCHEMA: Final = """
CREATE TABLE lease (
    scope TEXT NOT NULL,
    period TEXT NOT NULL,
    leased_nanousd INTEGER NOT NULL
        CHECK (typeof(leased_nanousd) = 'integer' AND leased_nanousd >= 0),
    PRIMARY KEY (scope, period)
) WITHOUT ROWID
"""
_WRITE: Final = "INSERT OR REPLACE INTO lease VALUES (?, ?, ?)"
#: As text, a month sorts before its days, and both by time.
_READ: Final = "SELECT scope, period, leased_nanousd FROM lease WHERE period >= ?"


class LedgerError(Exception):
    """The ledger can't be used, and what the operator can do: print it and don't start."""


class Ledger:
    """The file, held by this process alone. Not for two threads at once."""

    def __init__(self, folder: Path) -> None:
        """Open it, or make it where there is none.

        Raises LedgerError: in use, damaged, of another version, or the folder can't be written.
        """
        path = folder / _FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(folder)
            try:
                self._connection = _open(path)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise _unusable(path, error.strerror or _name(error)) from error

    def grants(self, utc_s: float) -> list[Grant]:
        """The rows of this month and later."""
        return _grants(self._connection, utc_s)

    def write(self, grants: list[Grant]) -> None:
        """Put these rows in, all or none; on return they are on the disk.

        Raises sqlite3.Error; whether they are there is then unknown. About 1 ms on an SSD.
        """
        rows = [(one.scope, one.period, one.leased_nanousd) for one in grants]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(_WRITE, rows)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Let another process have it."""
        self._connection.close()
        os.close(self._lock)


def read_grants(folder: Path, utc_s: float) -> list[Grant]:
    """The rows of this month and later, without holding the ledger: to show what is left.

    Raises LedgerError.
    """
    path = folder / _FILE
    if not path.exists():
        return []
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return _grants(connection, utc_s)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _broken(path, error) from error


# --- The file -------------------------------------------------------------------------------------


def _lock(folder: Path) -> int:
    """The lock's descriptor, which holds it until it is closed or the process ends, however."""
    lock = os.open(folder / "ledger.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 20).decode("ascii", "replace")
        os.close(lock)
        raise LedgerError(
            f"the spend ledger in {folder} is in use by process {owner}: two processes can't keep "
            "to one cap with it. Stop that one, or set another FREEAPI_DATA_DIR (which then has "
            "its own caps)"
        ) from None
    except OSError:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        if path.with_name(f"{path.name}-wal").exists():
            raise _damaged(path, "the file is missing, but not its journal")
        _create(path)
    if path.stat().st_size == 0:
        # SQLite would take it for a new one; ours are renamed into place when they have a schema.
        raise _damaged(path, "the file is empty")
    try:
        return _connect(path)
    except sqlite3.Error as error:
        raise _broken(path, error) from error


def _create(path: Path) -> None:
    """Make an empty ledger under another name, and only then give it its own."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        connection = sqlite3.connect(new, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _broken(path, error) from error
    new.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _connect(path: Path) -> sqlite3.Connection:
    """Open and check an existing file. Raises sqlite3.Error, LedgerError."""
    # Used by one thread at a time, but not always by the one that made it.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise LedgerError(
                f"the spend ledger {path} is of version {version}, and this freeapi knows "
                f"{VERSION}: use the freeapi that wrote it, or another FREEAPI_DATA_DIR"
            )
        verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise _damaged(path, "its check fails")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # A damaged journal ends, for SQLite, where its last whole entry does, without a word: what
        # was written must not live there for longer than it has to.
        connection.execute("PRAGMA wal_autocheckpoint = 1")
        connection.execute("SELECT scope, period, leased_nanousd FROM lease LIMIT 1")
    except BaseException:
        connection.close()
        raise
    return connection


def _grants(connection: sqlite3.Connection, utc_s: float) -> list[Grant]:
    month = f"{datetime.fromtimestamp(utc_s, UTC):%Y-%m}"
    return [Grant(*row) for row in connection.execute(_READ, (month,))]


def _broken(path: Path, error: sqlite3.Error) -> LedgerError:
    if _name(error) in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR"):
        return _damaged(path, "it isn't a ledger")
    return _unusable(path, _name(error))


def _damaged(path: Path, why: str) -> LedgerError:
    return LedgerError(
        f"the spend ledger {path} is damaged ({why}), so what was spent today and this month isn't "
        f"known. Restore it, or move {path}* away: spending then counts from zero, so lower "
        "FREEAPI_DAILY_USD and FREEAPI_MONTHLY_USD by what the upstream says was spent"
    )


def _unusable(path: Path, why: str) -> LedgerError:
    return LedgerError(
        f"the spend ledger {path} can't be used ({why}): check the permissions and the free space "
        "there, or set another FREEAPI_DATA_DIR"
    )


def _name(error: BaseException) -> str:
    """A word of ours, SQLite's or Python's, fit for a label."""
    return getattr(error, "sqlite_errorname", type(error).__name__)


# --- The event loop's side ------------------------------------------------------------------------


class _Waiter:
    """A request for which too little is leased yet."""

    __slots__ = ("amount_nanousd", "caller", "result", "upstream")

    def __init__(
        self, upstream: str, caller: bytes, amount_nanousd: int, result: asyncio.Future[Reservation]
    ) -> None:
        self.upstream = upstream
        self.caller = caller
        self.amount_nanousd = amount_nanousd
        self.result = result


class Purse:
    """The budget, kept in money by the ledger. For one event loop."""

    def __init__(
        self,
        caps: Caps,
        ledger: Ledger,
        clock: Callable[[], float],
        report: Callable[[str], None],
    ) -> None:
        """Call it in the loop. ``clock``: seconds since 1970.

        ``report`` is told of the ledger's state when it changes: SQLite's word for what failed, or
        ``ok`` when it works again.
        """
        utc_s = clock()
        self._ledger = ledger
        self._clock = clock
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._writer = ThreadPoolExecutor(1, "ledger")
        self._waiters: deque[_Waiter] = deque()
        #: A write is under way or about to be, or the next try after one that failed.
        self._is_busy = False
        #: The write itself, while there is one.
        self._write: asyncio.Future[None] | None = None
        self._has_failed = False
        self._is_closed = False
        self._budget = Budget(caps, ledger.grants(utc_s), utc_s, self._lease_soon)

    def reserve_now(self, upstream: str, caller: bytes, amount_nanousd: int) -> Reservation | None:
        """Take a request's worst case; None while too little is leased: then ``reserve``."""
        if self._waiters and amount_nanousd:  # they were there before
            return None
        return self._budget.reserve(upstream, caller, amount_nanousd, self._clock())

    async def reserve(self, upstream: str, caller: bytes, amount_nanousd: int) -> Reservation:
        """The same, waiting while too little is leased, one write of the disk for most.

        Raises BudgetExhausted, BudgetBusy, LedgerUnavailable, ShuttingDown: nothing was taken.
        """
        reservation = self.reserve_now(upstream, caller, amount_nanousd)
        if reservation is not None:
            return reservation
        if self._is_closed:
            raise ShuttingDown
        if self._has_failed:
            raise LedgerUnavailable(retry_after_s=RETRY_S)
        waiter = _Waiter(upstream, caller, amount_nanousd, self._loop.create_future())
        self._waiters.append(waiter)
        try:
            return await waiter.result
        except asyncio.CancelledError:
            # Served in the very tick in which its caller went.
            if not waiter.result.cancelled() and waiter.result.exception() is None:
                waiter.result.result().release()
            raise

    def reconfigure(self, caps: Caps) -> None:
        """Keep to these caps from now on; see ``Budget.reconfigure``.

        Those who wait for a lease are decided anew with the next write. Without caps all is paid.
        """
        self._budget.reconfigure(caps, self._clock())

    def status(self) -> Status:
        """What is left."""
        return self._budget.status(self._clock())

    async def close(self) -> None:
        """Write down what isn't used of the leases, and close the ledger.

        Reservations that are still open count as spent. Nothing can be reserved any more.
        """
        self._is_closed = True
        self._fail_waiters(ShuttingDown)
        if self._write is not None:
            await asyncio.wait([self._write])
        await self._loop.run_in_executor(self._writer, self._finish, self._budget.close())
        self._writer.shutdown()

    def _finish(self, grants: list[Grant]) -> None:
        """In the thread: a lease that can't be given back is forfeited, and no more."""
        try:
            self._ledger.write(grants)
        except sqlite3.Error as error:
            self._loop.call_soon_threadsafe(self._report, _name(error))
        self._ledger.close()

    # --- Leasing ahead ---

    def _lease_soon(self) -> None:
        """Called amid a decision: the orders can only be made after it."""
        if not self._is_busy:
            self._is_busy = True
            self._loop.call_soon(self._lease)

    def _lease(self) -> None:
        """Have the orders written, if there are any."""
        orders = [] if self._is_closed else self._budget.orders()
        if not orders:
            self._is_busy = False
            self._serve()
            return
        self._write = self._loop.run_in_executor(self._writer, self._ledger.write, orders)
        self._write.add_done_callback(partial(self._written, orders))

    def _written(self, grants: list[Grant], write: asyncio.Future[None]) -> None:
        self._write = None
        error = write.exception()
        if (error is not None) is not self._has_failed:
            self._has_failed = error is not None
            self._report("ok" if error is None else _name(error))
        if error is not None:
            # Busy until then: the next try is at its time, whoever asks for more.
            self._loop.call_later(RETRY_S, self._lease)
            self._fail_waiters(partial(LedgerUnavailable, retry_after_s=RETRY_S))
            return
        self._is_busy = False
        if not self._is_closed:
            self._budget.granted(grants)
            self._serve()
            self._budget.review()

    def _serve(self) -> None:
        """Let those that wait reserve, in their order, as far as the lease goes."""
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.result.done():
                try:
                    reservation = self._budget.reserve(
                        waiter.upstream, waiter.caller, waiter.amount_nanousd, self._clock()
                    )
                except FreeApiError as error:
                    waiter.result.set_exception(error)
                else:
                    if reservation is None:
                        return
                    waiter.result.set_result(reservation)
            self._waiters.popleft()

    def _fail_waiters(self, error: Callable[[], FreeApiError]) -> None:
        for waiter in self._waiters:
            if not waiter.result.done():
                waiter.result.set_exception(error())
        self._waiters.clear()
