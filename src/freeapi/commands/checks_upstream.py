"""What ``freeapi doctor`` says about the upstreams: ways, certificates, keys, models, the clock.

Functions of what ``probe`` saw. What this is not: it asks nobody.

Invariant: of a key four characters are shown at most (``Secret``), and of an upstream's answer the
status only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from freeapi.commands.diagnosis import Finding, not_checked, ok, problem, warning
from freeapi.commands.probe import KeyAnswer, Probe, Way
from freeapi.config import Config
from freeapi.policy.failures import CALLER_STATUSES
from freeapi.policy.models import ANY_MODEL
from freeapi.upstreams import routed

#: A certificate that is renewed automatically is so a month or a third of its life before.
DAYS_LEFT_MIN: Final = 14
#: Between these a busy machine or a slow network is as likely as a wrong clock.
SKEW_WARNED_S: Final = 5.0
SKEW_REFUSED_S: Final = 60.0
#: Names of models in one line.
_NAMED_MAX: Final = 5

_REMEDIES: Final = {
    "name": "check base_url, and this machine's DNS (/etc/resolv.conf, or the container's network)",
    "connection": "check base_url, that it runs, and that a firewall lets this machine out",
    "proxy": "check proxy and proxy_auth_env of this upstream, and what the proxy allows",
    "TLS": (
        "check base_url and this machine's clock; for an authority of your own set SSL_CERT_FILE "
        "to its certificate"
    ),
}


def check_upstream(probe: Probe, config: Config) -> Iterator[Finding]:
    """Its way, its keys, and whether it has the models that are asked of it."""
    name = probe.upstream.name
    yield from _way(name, probe.way, probe.upstream.base_url)
    if probe.way.failed is None:
        if probe.chat_status == 404 and _is_asked_to_chat(name, config):
            yield problem(
                name,
                f"{probe.upstream.base_url} is no API like OpenAI's: neither GET /models nor POST "
                "/chat/completions is there (status 404)",
                "mend base_url; most end in /v1, and none in /chat/completions",
            )
            return
        yield from _keys(name, probe.answers)
        yield from _models(probe, config)


def check_clock(probes: Sequence[Probe]) -> Finding:
    """Our clock against the upstreams': the day of the caps is the UTC day."""
    told = [
        (probe.upstream.is_loopback, answer.skew_s) for probe in probes for answer in probe.answers
    ]
    skews = [(is_own, skew_s) for is_own, skew_s in told if skew_s is not None]
    if not skews:
        return not_checked("clock", "no upstream told the time")
    # A server on this machine has this machine's clock. One that agrees is enough.
    _, skew_s = min(skews, key=lambda one: (one[0], abs(one[1])))
    direction = "behind" if skew_s > 0 else "ahead of"
    text = f"this machine's clock is {abs(skew_s):.0f} s {direction} the upstream's"
    remedy = "set it by NTP (timedatectl set-ntp true): the caps' days and months follow the clock"
    if abs(skew_s) > SKEW_REFUSED_S:
        return problem("clock", text, remedy)
    if abs(skew_s) > SKEW_WARNED_S:
        return warning("clock", text, remedy)
    return ok("clock", "agrees with the upstream's to within some seconds")


def _way(name: str, way: Way, base_url: str) -> Iterator[Finding]:
    if way.failed is not None:
        yield problem(name, f"{base_url}: {way.failed} failed: {way.why}", _REMEDIES[way.failed])
        return
    took = f"{way.took_s * 1_000:.0f} ms"
    if way.days_left is None:
        yield ok(name, f"{base_url} answers, connected in {took}")
    elif way.days_left >= DAYS_LEFT_MIN:
        left = f"{way.days_left:.0f} more days"
        yield ok(name, f"{base_url} answers, connected in {took}, its certificate holds for {left}")
    else:
        yield warning(
            name,
            f"{base_url}: its certificate ends in {way.days_left:.0f} days",
            "whoever runs it has to renew it: from then on no request gets there",
        )


# --- Keys -----------------------------------------------------------------------------------------


def _keys(name: str, answers: Sequence[KeyAnswer]) -> Iterator[Finding]:
    """The good ones in one line, each other one in its own."""
    good = [answer for answer in answers if answer.status == 200]
    if good:
        slowest_ms = max(answer.took_s for answer in good) * 1_000
        whose = "no key is wanted" if good[0].key is None else f"{len(good)} of {len(answers)} keys"
        accepted = whose if good[0].key is None else f"{whose} accepted"
        yield ok(name, f"{accepted}; GET /models in {slowest_ms:.0f} ms")
    for answer in answers:
        if answer.status != 200:
            yield _other(name, answer, has_good=bool(good))


def _other(name: str, answer: KeyAnswer, *, has_good: bool) -> Finding:
    """A key without a listing. One of many may fail without harm to callers, the last may not."""
    key = "without a key" if answer.key is None else f"key {answer.key!r}"
    bad = warning if has_good else problem
    if answer.failure is None:
        text = f"{key}: no answer to GET /models ({answer.label})"
        return bad(name, text, "try again; if it stays so, the upstream or the way to it is broken")
    text, remedy = _verdict(answer.status, answer.failure.verdict)
    # Whether a request would be answered isn't known then.
    gentle = answer.status == 403 or answer.failure.verdict in ("cooling", "caller", "unknown")
    return (warning if gentle else bad)(name, f"{key}: {text} (status {answer.status})", remedy)


def _verdict(status: int, verdict: str) -> tuple[str, str]:
    """In words, and what to do."""
    if status == 403:
        return (
            "may not list the models",
            "right for a restricted key that may use the models themselves; else its country, its "
            "project or its permissions are refused",
        )
    if verdict == "dead":
        return "is invalid", "replace it, or take it out: revoked or mistyped keys never come back"
    if verdict == "out of quota":
        return "has no money left", "pay in, raise its limit, or take it out"
    if verdict == "cooling":
        return "is over its rate limit now", "nothing, if it is in use elsewhere, too"
    if status in CALLER_STATUSES or status == 405:
        return (
            "can't be tried for free: no list of models there",
            "send one request to try it",
        )
    if 300 <= status < 400:
        return "it answers by a redirect, which isn't followed", "set base_url to where it leads"
    return "the upstream fails", "wait, and look at its status page"


def _is_asked_to_chat(name: str, config: Config) -> bool:
    return any(name in one.upstreams and "chat" in one.endpoints for one in routed(config))


# --- Models ---------------------------------------------------------------------------------------


def _models(probe: Probe, config: Config) -> Iterator[Finding]:
    """Whether what is sent there is on any of its keys' lists."""
    upstream = probe.upstream
    lists = [answer.models for answer in probe.answers if answer.models is not None]
    # Azure lists what could be deployed, and takes the names of deployments.
    if not lists or upstream.auth == "api-key":
        return
    asked = {
        model.upstream_model: model.name
        for model in routed(config)
        if upstream.name in model.upstreams and model.upstream_model != ANY_MODEL
    }
    known = frozenset[str]().union(*lists)
    missing = sorted(asked.keys() - known)
    if missing:
        yield warning(
            upstream.name,
            f"{len(missing)} of {len(asked)} models aren't on its list: {_some(missing)}",
            "callers who ask for them get 404: set another upstream_model, let the project use "
            "them, or take them out",
        )
    elif asked:
        yield ok(upstream.name, f"lists all {len(asked)} models that are asked of it")


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _NAMED_MAX} more" if len(shown) > _NAMED_MAX else ""
    return ", ".join(shown[:_NAMED_MAX]) + more
