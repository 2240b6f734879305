"""``freeapi audit``: what this instance does with what passes through it, shown on this machine.

Plan: start the operator's own configuration against a recording upstream, traced by the kernel;
send unique texts through every channel and into every kind of trouble; collect what the upstream
got, what callers were answered, all output, all that was written to files, all pages; search all of
it for each text where it mustn't be.

What this is not: a promise about the operator's platform (a proxy in front may log) or about the
real upstream (OpenAI keeps what it keeps): PRIVACY.md says what they may do.

Invariants:
- No real key is used, and nothing leaves this machine.
- What couldn't be looked at is no pass: exit code 2, with the reason.
Exit codes: 0 nothing was found where it mustn't be, 1 something was, 2 it could not be told.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from freeapi.commands.canaries import Canary, Evidence, address, search, word
from freeapi.commands.channels import Channels
from freeapi.commands.exchanges import Exchange, plan
from freeapi.commands.findings import Report, channel_checks, process_checks
from freeapi.commands.recorder import Recorder
from freeapi.commands.rehearsal import Rehearsal, prepare
from freeapi.commands.subject import CannotStart, Subject
from freeapi.commands.tracing import CannotTrace
from freeapi.config import Config
from freeapi.policy.models import ANY_MODEL

#: How the process under audit is started.
COMMAND: Final = (sys.executable, "-m", "freeapi", "serve")
_PUBLIC_PAGES: Final = ("/", "/status", "/healthz", "/readyz", "/v1/models")
_ADMIN_PAGES: Final = ("/", "/keys", "/metrics")


class Inconclusive(Exception):
    """Something could not be looked at; the text says what, and what to do."""


def run(
    config: Config,
    settings: Mapping[str, str],
    *,
    as_json: bool,
    command: Sequence[str] = COMMAND,
) -> int:
    """Audit and print; returns the exit code. ``settings``: the environment and ``.env`` as one."""
    try:
        report = audit(config, settings, command)
    except (CannotTrace, CannotStart, Inconclusive) as error:
        print(f"freeapi audit could not tell: {error}", file=sys.stderr)
        return 2
    print(report.json() if as_json else report.text())
    return 0 if report.ok else 1


def audit(config: Config, settings: Mapping[str, str], command: Sequence[str] = COMMAND) -> Report:
    """All of it. Raises CannotTrace, CannotStart, Inconclusive."""
    recorder = Recorder()
    try:
        with tempfile.TemporaryDirectory(prefix="freeapi-audit-") as home:
            rehearsal = prepare(
                config,
                settings,
                Path(home),
                upstream_port=recorder.port,
                admin_port=_free_port(),
                words=iter(word, ""),
            )
            channels = _channels(config, rehearsal)
            with Subject(command, rehearsal.home, rehearsal.environ) as subject:
                inquiry = _Inquiry(channels, recorder, subject)
                inquiry.hold(plan(channels))
                inquiry.visit(rehearsal.admin_port)
                inquiry.look_around()
                inquiry.look_back(subject.stop())
            return inquiry.report(rehearsal)
    except OSError as error:
        raise Inconclusive(
            f"the gateway stopped answering, or a file can't be had: {error}"
        ) from error
    finally:
        recorder.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _channels(config: Config, rehearsal: Rehearsal) -> Channels:
    channels = Channels(
        rehearsal.model,
        rehearsal.tokens,
        proxy_hops=config.proxy_hops,
        any_model=any(model.name == ANY_MODEL for model in config.models),
    )
    for key in rehearsal.keys:
        channels.add(key, "the instance's own keys", frozenset({"upstream"}))
    return channels


class _Inquiry:
    """What was collected so far."""

    def __init__(self, channels: Channels, recorder: Recorder, subject: Subject) -> None:
        self._canaries: list[Canary] = channels.canaries
        self._recorder = recorder
        self._subject = subject
        self._collected: list[Evidence] = []
        self._limits = ""
        self._exit_code: int | None = None

    def hold(self, exchanges: Sequence[Exchange]) -> None:
        """Make each exchange, from an address of its own. Raises Inconclusive."""
        for exchange in exchanges:
            source = address("127.")
            self._canaries.append(Canary(source, "the caller's own address", frozenset()))
            self._recorder.exchange, self._recorder.reply = exchange.name, exchange.reply
            before = len(self._recorder.requests)
            answer = self._subject.ask(
                self._subject.port,
                exchange.data,
                source,
                exchange.caller,
                functools.partial(self._recorder.wait_for_request, before),
            )
            name = f"the answer to '{exchange.name}'"
            self._collected.append(Evidence("answer", name, answer, exchange.name))
            self._check_way(exchange, len(self._recorder.requests) - before, answer)

    def _check_way(self, exchange: Exchange, arrived: int, answer: bytes) -> None:
        """What never got there can't have leaked there, so it would prove nothing."""
        if exchange.is_forwarded is not None and exchange.is_forwarded != (arrived > 0):
            went = "didn't reach" if exchange.is_forwarded else "reached"
            status = answer.split(b"\r\n")[0].decode(errors="replace")
            raise Inconclusive(
                f"'{exchange.name}' {went} the upstream ({status or 'no answer'}). Is a limit or "
                "cap of this configuration too small for some forty short requests?"
            )

    def visit(self, admin_port: int) -> None:
        """Read every page that shows something of the process."""
        self._recorder.exchange = "pages"
        ports = [(self._subject.port, page) for page in _PUBLIC_PAGES]
        ports += [(admin_port, page) for page in _ADMIN_PAGES]
        for port, page in ports:
            data = f"GET {page} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
            answer = self._subject.ask(port, data)
            name = f"the {'admin' if port == admin_port else 'public'} page {page}"
            self._collected.append(Evidence("pages", name, answer))

    def look_around(self) -> None:
        """While it runs: its command line, its limits, its files."""
        process = Path(f"/proc/{self._subject.pid}")
        line = (process / "cmdline").read_bytes()
        self._collected.append(Evidence("surroundings", "the process list", line))
        self._limits = (process / "limits").read_text()
        self._read_files("while it ran")

    def look_back(self, exit_code: int | None) -> None:
        """After its end: everything that it said, wrote and sent."""
        self._exit_code = exit_code
        self._collected.append(Evidence("output", "stdout or stderr", self._subject.output))
        for path, data in self._subject.trace.files.items():
            self._collected.append(Evidence("files", f"what was written to {path}", bytes(data)))
        self._read_files("after its end")
        for exchange, request in self._recorder.requests:
            name = f"what the upstream got of '{exchange}'"
            self._collected.append(Evidence("upstream", name, request, exchange))

    def _read_files(self, when: str) -> None:
        """What was written by way of memory isn't in the trace, but in the file."""
        for path in self._subject.trace.files.copy():
            if Path(path).is_file():
                data = Path(path).read_bytes()
                self._collected.append(Evidence("files", f"the file {path} {when}", data))

    # --- The result ---

    def report(self, rehearsal: Rehearsal) -> Report:
        """Raises Inconclusive: what must be found wasn't, or something wasn't seen."""
        trace = self._subject.trace
        home = f"{rehearsal.home}{os.sep}"
        if trace.gaps:
            raise Inconclusive(f"not everything could be traced: {', '.join(sorted(trace.gaps))}")
        self._require_controls()
        found = search(self._canaries, self._collected)
        checks = [
            *channel_checks(self._canaries, found),
            *process_checks(
                trace, f"127.0.0.1:{self._recorder.port}", self._limits, self._exit_code
            ),
        ]
        bad = [check for check in checks if not check.ok]
        sizes = {place: len(list(group)) for place, group in self._by_place()}
        looked_in = {
            "different texts sent": len(self._canaries),
            "requests that the upstream got": sizes.get("upstream", 0),
            "answers to callers": sizes.get("answer", 0),
            "status and operator pages": sizes.get("pages", 0),
            "bytes of stdout and stderr": len(self._subject.output),
            "files that it wrote": len(trace.files),
            "bytes written to them": sum(map(len, trace.files.values())),
        }
        return Report(
            ok=not bad,
            summary=_summary(len(bad), len(checks)),
            checks=tuple(checks),
            looked_in=looked_in,
            files=tuple(path.removeprefix(home) for path in trace.files),
            connections=tuple(sorted(trace.peers)),
            programs=tuple(trace.programs),
            notes=tuple(rehearsal.notes),
        )

    def _by_place(self) -> itertools.groupby[str, Evidence]:
        def place(evidence: Evidence) -> str:
            return evidence.place

        return itertools.groupby(sorted(self._collected, key=place), place)

    def _require_controls(self) -> None:
        """A search that finds nothing at all proves nothing: some texts must have arrived."""
        for channel, place in (("prompt", "upstream"), ("reply", "answer")):
            texts = [one.text.encode() for one in self._canaries if one.channel == channel]
            places = [one.data for one in self._collected if one.place == place]
            if not any(text in data for text in texts for data in places):
                raise Inconclusive(f"the {channel} didn't arrive, so nothing was shown")


def _summary(bad: int, all_: int) -> str:
    if bad:
        return f"NOT PRIVATE: {bad} of {all_} checks found something where it must not be."
    return (
        f"Private: all {all_} checks passed. Nothing that callers sent or were answered was found "
        "anywhere but where it belongs."
    )
