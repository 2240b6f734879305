"""What ``freeapi doctor`` says about a configuration that loads."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from freeapi.commands.checks_config import (
    PRICES_DAYS_MAX,
    RETIRED_ON,
    check_config,
    check_files,
    notes,
)
from freeapi.commands.diagnosis import Finding
from freeapi.prices import priced
from tests.configs import KEY, OTHER_KEY, read

PAID = {"OPENAI_API_KEYS": KEY}


def at(day: str) -> float:
    """Its midnight."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def about(subject: str, findings: Iterable[Finding]) -> list[Finding]:
    """Those about the subject."""
    return [finding for finding in findings if finding.about == subject]


def checked(
    subject: str, environ: dict[str, str], toml: str | None = None, day: str = "2026-11-23"
) -> list[Finding]:
    """What is said about the subject on that day."""
    return about(subject, check_config(priced(read(environ, toml)), at(day)))


def test_defaults_with_a_key_are_no_problem() -> None:
    """With a key and nothing else set, only what OpenAI retires is worth a warning."""
    findings = list(check_config(priced(read(PAID)), at("2026-11-23")))
    assert {one.about for one in findings if one.level != "ok"} == {"models"}


def test_paid_upstream_without_a_cap_is_a_warning() -> None:
    """Both caps off: whoever finds the instance can spend all that the key has."""
    (finding,) = checked("caps", {**PAID, "FREEAPI_DAILY_USD": "off"})
    assert (finding.level, "FREEAPI_DAILY_USD" in finding.remedy) == ("warning", True)
    (finding,) = checked("caps", {"FREEAPI_DAILY_USD": "off"})
    assert finding.level == "ok"  # nothing is paid for


def test_month_alone_is_a_cap() -> None:
    """A monthly cap without a daily one isn't warned about, nor is an upstream's own."""
    settings = {**PAID, "FREEAPI_DAILY_USD": "off", "FREEAPI_MONTHLY_USD": "50"}
    (finding,) = checked("caps", settings)
    assert (finding.level, "$50.00 a month" in finding.text) == ("ok", True)
    own = '[[upstream]]\nname = "lab"\nkeys_env = "LAB"\ndaily_usd = 3\n'
    (finding,) = checked("caps", {"LAB": KEY, "FREEAPI_DAILY_USD": "off"}, own)
    assert finding.level == "ok"


@pytest.mark.parametrize(("share", "warned"), [("off", True), ("100%", True), ("50%", False)])
def test_caller_who_can_spend_all_is_a_warning(share: str, warned: bool) -> None:
    """One caller's share is less than all, or one caller can take everyone's day."""
    findings = checked("caps", {**PAID, "FREEAPI_CALLER_DAILY_USD": share})
    assert any(one.level == "warning" for one in findings) is warned


def test_cap_below_one_request_is_a_problem() -> None:
    """A cap under what the shortest request may cost refuses every one of them."""
    findings = checked("caps", {**PAID, "FREEAPI_CALLER_DAILY_USD": "0.0001"})
    assert [one.level for one in findings] == ["ok", "problem"]
    assert "gpt-3.5-turbo" in findings[1].text


def test_old_prices_are_a_warning() -> None:
    """The table in the package ages; caps are only as true as it is."""
    (finding,) = checked("prices", PAID)
    assert finding.level == "ok"
    (finding,) = checked("prices", PAID, day="2028-01-01")
    assert finding.level == "warning"
    assert PRICES_DAYS_MAX < 365


def test_models_that_retire_are_told_before_and_after() -> None:
    """What OpenAI is about to shut down is a warning, and from that day on a problem."""
    day = RETIRED_ON["gpt-4o-mini"].isoformat()
    assert {one.level for one in checked("models", PAID)} == {"warning"}
    assert {one.level for one in checked("models", PAID, day=day)} == {"problem"}
    dated = '[[model]]\nname = "x"\nupstream_model = "gpt-4o-mini-2024-07-18"\n'
    (finding,) = checked("models", PAID, dated)
    assert "gpt-4o-mini" in finding.text


def test_models_elsewhere_do_not_retire() -> None:
    """Another service may serve a model of that name for as long as it likes."""
    elsewhere = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    assert checked("models", elsewhere) == []


def test_key_of_two_upstreams_is_told_by_four_characters() -> None:
    """The same key at two upstreams would be counted by each for itself."""
    same = '[[upstream]]\nname = "a"\nkeys_env = "A"\n[[upstream]]\nname = "b"\nkeys_env = "B"\n'
    (finding,) = checked("keys", {"A": KEY, "B": f"{OTHER_KEY} {KEY}"}, same)
    assert finding.level == "warning"
    assert KEY[-4:] in finding.text
    assert KEY[-5:] not in finding.text
    assert OTHER_KEY[-4:] not in finding.text
    assert checked("keys", {"A": KEY, "B": OTHER_KEY}, same) == []


@pytest.mark.parametrize(
    ("host", "hops", "level", "word"),
    [
        ("127.0.0.1", "0", "ok", "only this machine"),
        ("127.0.0.1", "1", "ok", "1 proxies in front"),
        ("0.0.0.0", "0", "warning", "share one caller's limits"),
        ("0.0.0.0", "1", "warning", "around the proxy"),
    ],
)
def test_proxies_in_front_are_thought_of(host: str, hops: str, level: str, word: str) -> None:
    """Where callers may come through a proxy, or around it, what follows is said."""
    (finding,) = checked("callers", {"HOST": host, "FREEAPI_PROXY_HOPS": hops})
    assert (finding.level, word in finding.text) == (level, True)


def test_public_admin_port_is_a_warning() -> None:
    """The admin port is for the operator; on all interfaces it isn't."""
    (finding,) = checked("admin", {"FREEAPI_ADMIN_ADDR": "0.0.0.0:9464"})
    assert finding.level == "warning"
    assert checked("admin", {}) == []


def test_warnings_of_the_configuration_are_repeated() -> None:
    """What the start would warn about is among the findings."""
    toml = (
        '[[upstream]]\nname = "lan"\nbase_url = "http://gpu.lan/v1"\nkeys_env = "K"\nfree = true\n'
    )
    findings = checked("config", {"K": KEY}, toml)
    assert [one.level for one in findings] == ["ok", "warning"]
    assert "unencrypted" in findings[1].text


def test_request_log_is_mentioned() -> None:
    """Who turned it on is reminded of it, and of what it holds."""
    (finding,) = checked("log", {"FREEAPI_REQUEST_LOG": "on"})
    assert (finding.level, "without content" in finding.text) == ("ok", True)
    assert checked("log", {}) == []


def test_files_of_secrets_are_for_their_owner(tmp_path: Path) -> None:
    """A file with keys that everyone may read is named; freeapi.toml holds none."""
    names = (".env", "keys", "freeapi.toml", "missing")
    for name in names[:-1]:
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    paths = [str(tmp_path / name) for name in names]
    found = list(check_files(paths, read()))
    assert [one.remedy for one in found] == [f"chmod 600 {path}" for path in paths[:2]]
    for path in paths[:2]:
        Path(path).chmod(0o600)
    assert list(check_files(paths, read())) == []


def test_backstops_are_recommended_where_openai_is_paid() -> None:
    """A project's hard limit and its default tier are advice for OpenAI's own API only."""
    advice = " ".join(notes(read(PAID)))
    assert "hard spend limit" in advice
    assert "default tier" in advice
    assert list(notes(read())) == []
    assert list(notes(read({**PAID, "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}))) == []
