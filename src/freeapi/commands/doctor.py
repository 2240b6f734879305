"""``freeapi doctor``: whether this instance can do what it promises, and what to do where it can't.

Plan: protect the memory that is about to hold keys; read the configuration; look at it, at this
machine, at the shared state and at every upstream; say it all at once.

What this is not: a test with money. Each key is tried by ``GET /models``, which costs nothing, so
whether an account can still pay is only known where the upstream says so.

Invariants:
- Nobody is asked but the configured upstreams and state, and this instance's own port.
- Nothing is changed; it may run beside a gateway that serves.
- No key, token or password is printed, but four characters of a key.
Exit codes: 0 no problem (warnings don't count), 1 a problem, 2 the configuration can't be used.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec
import uvloop

from freeapi.commands.checks_config import check_config, check_files, notes
from freeapi.commands.checks_machine import (
    check_data_dir,
    check_descriptors,
    check_hardening,
    check_model,
    check_ports,
    check_swap,
    open_files_max,
    read_swaps,
)
from freeapi.commands.checks_upstream import check_clock, check_upstream
from freeapi.commands.diagnosis import Diagnosis, Finding, not_checked, ok, problem
from freeapi.commands.probe import Probe, probe
from freeapi.config import Config, ConfigError
from freeapi.http.deadlines import Deadlines
from freeapi.upstreams import build, caps

#: The longest that a person waits for one step, whatever the configuration allows a request.
STEP_MAX_S: Final = 10.0


def run(
    read: Callable[[], Config],
    paths: Callable[[], Collection[str]],
    *,
    as_json: bool,
    offline: bool,
) -> int:
    """Examine and print; returns the exit code.

    ``read`` makes the configuration or raises ConfigError; ``paths``: the files it was made of.
    """
    memory = check_hardening()
    try:
        config = read()
    except ConfigError as error:
        found = [
            problem("config", f"{one.name}: found {one.found}", f"allowed: {one.allowed}")
            for one in error.problems
        ]
        _print(Diagnosis.of([memory, *found]), as_json=as_json)
        return 2
    findings = uvloop.run(examine(config, paths(), offline=offline))
    diagnosis = Diagnosis.of([memory, *findings], notes(config))
    _print(diagnosis, as_json=as_json)
    return 0 if diagnosis.ok else 1


def _print(diagnosis: Diagnosis, *, as_json: bool) -> None:
    print(diagnosis.json() if as_json else diagnosis.text())


async def examine(config: Config, paths: Iterable[str], *, offline: bool) -> list[Finding]:
    """All checks of a configuration that loads."""
    ports, model, state, probes = await asyncio.gather(
        check_ports(config),
        check_model(config),
        _state(config, offline=offline),
        _probes(config, offline=offline),
    )
    findings = [
        *check_config(config, time.time()),
        *check_files(paths, config),
        *ports.findings,
        *check_data_dir(config, is_running=ports.is_running),
        *check_descriptors(config, open_files_max()),
        *check_swap(read_swaps()),
        *model,
        *state,
    ]
    for one in probes:
        findings += check_upstream(one, config)
    if probes:
        findings.append(check_clock(probes))
    elif config.upstreams:
        findings.append(not_checked("upstreams", "nor the clock by theirs: --offline"))
    return findings


async def _probes(config: Config, *, offline: bool) -> list[Probe]:
    """Every upstream, at the same time."""
    if offline:
        return []
    limits = {
        name: min(getattr(config.timeouts, name), STEP_MAX_S)
        for name in ("connect_s", "first_byte_s", "idle_s")
    }
    patience = msgspec.structs.replace(config.timeouts, **limits)
    deadlines = Deadlines(asyncio.get_running_loop(), min(limits.values()))
    upstreams = build(msgspec.structs.replace(config, timeouts=patience), None, deadlines)
    try:
        return await asyncio.gather(
            *(probe(one, upstreams.pools[one.name]) for one in config.upstreams)
        )
    finally:
        upstreams.close()
        deadlines.close()


async def _state(config: Config, *, offline: bool) -> list[Finding]:
    """Where the counters live."""
    if config.state is None:
        return [ok("state", "in memory: right for one process; several would each have their own")]
    if offline:
        return [not_checked("state", f"{config.state}: --offline")]
    # Here and not above: it takes 100 ms that every start of the command line would pay.
    checks = importlib.import_module("freeapi.commands.checks_state")
    found: list[Finding] = await checks.check_state(
        config.state, is_capped=caps(config) is not None
    )
    return found
