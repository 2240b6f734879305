"""The rows about the process: each says so when something isn't as it should be."""

from __future__ import annotations

from freeapi.commands.findings import process_checks
from freeapi.commands.tracing import Trace

UPSTREAM = "127.0.0.1:1234"
LIMITS = "Limit  Soft Limit  Hard Limit  Units\nMax core file size        {}      0      bytes\n"


def quiet() -> Trace:
    """A process that spoke to its upstream only."""
    trace = Trace()
    trace.peers.add(UPSTREAM)
    trace.is_undumpable = True
    return trace


def test_a_quiet_process_passes() -> None:
    """One upstream, no program, no core file, a clean end: all is as it should be."""
    assert all(check.ok for check in process_checks(quiet(), UPSTREAM, LIMITS.format(0), 0))


def test_each_property_that_is_not_kept_is_a_row() -> None:
    """A second address, a program, a core limit, a readable memory and a bad end are each told."""
    trace = quiet()
    trace.peers.add("192.0.2.1:53")
    trace.programs.append("/bin/sh")
    trace.is_undumpable = False
    checks = process_checks(trace, UPSTREAM, LIMITS.format("unlimited"), -6)
    assert [check.found for check in checks] == [
        ("192.0.2.1:53",),
        ("/bin/sh",),
        ("up to unlimited bytes",),
        ("allowed (PR_SET_DUMPABLE isn't 0)",),
        ("exit code -6",),
    ]
    assert not any(check.ok for check in checks)


def test_a_core_limit_that_cannot_be_read_is_no_pass() -> None:
    """Where the kernel says nothing of the limit, nothing is claimed."""
    core = process_checks(quiet(), UPSTREAM, "", 0)[2]
    assert not core.ok
