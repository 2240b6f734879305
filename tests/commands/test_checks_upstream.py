"""What ``freeapi doctor`` says about upstreams: each way in which one may fail is told by its name.

Real servers over TCP and TLS; the checks run in this process, by the function that the command
runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest
import trustme

from freeapi.commands.diagnosis import Finding
from freeapi.commands.doctor import examine
from freeapi.commands.probe import AT_ONCE_MAX, LISTING_BYTES_MAX
from tests.answers import answer, error, head
from tests.configs import KEY, OTHER_KEY, read
from tests.connect_proxy import ConnectProxy
from tests.scripted_upstream import (
    PATIENCE_S,
    Request,
    Script,
    ScriptedUpstream,
    hang,
    listening_socket,
    reset,
    send,
)

IMPATIENT = "[timeouts]\nconnect_s = 0.3\nfirst_byte_s = 0.3\n"
ONE_MODEL = '[[model]]\nname = "gpt-x"\nupstream_model = "gpt-y"\n'


def listing(*names: str, clock_s: float = 0.0) -> bytes:
    """An answer to GET /models by an upstream whose clock is off by so much."""
    now = datetime.now(UTC) + timedelta(seconds=clock_s)
    date = f"{now:%a, %d %b %Y %H:%M:%S} GMT"
    body = {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}
    return answer(200, json.dumps(body).encode(), ("date", date))


async def examined(
    base_url: str, keys: str = KEY, toml: str = ONE_MODEL
) -> dict[str, list[Finding]]:
    """The findings about an upstream at this address, by what they are about."""
    environ = {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEYS": keys,
        "FREEAPI_DAILY_USD": "off",
        "FREEAPI_ADMIN_ADDR": "off",
        "PORT": "0",
    }
    return await examined_config(environ, toml)


async def examined_config(environ: dict[str, str], toml: str) -> dict[str, list[Finding]]:
    """The same, of any configuration."""
    found: dict[str, list[Finding]] = {}
    for finding in await examine(read(environ, toml), (), offline=False):
        found.setdefault(finding.about, []).append(finding)
    return found


def url(upstream: ScriptedUpstream, scheme: str = "http", host: str = "127.0.0.1") -> str:
    """Where the upstream listens."""
    return f"{scheme}://{host}:{upstream.port}/v1"


async def test_good_upstream_is_ok_in_every_way(upstream: ScriptedUpstream) -> None:
    """An upstream that takes the key, has the model and tells our time is ok, and asked once."""
    upstream.plays([send(listing("gpt-y"))])
    found = await examined(url(upstream))
    assert {one.level for one in (*found["openai"], *found["clock"])} == {"ok"}
    assert "1 of 1 keys accepted" in found["openai"][1].text
    assert "lists all 1 models" in found["openai"][2].text
    (request,) = upstream.requests
    assert (request.method, request.target) == ("GET", "/v1/models")
    assert request.header("authorization") == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("status", "code", "level", "word"),
    [
        (401, "invalid_api_key", "problem", "is invalid"),
        (429, "insufficient_quota", "problem", "has no money left"),
        (402, None, "problem", "has no money left"),
        (429, "rate_limit_exceeded", "warning", "over its rate limit"),
        (403, None, "warning", "may not list the models"),
        (404, None, "warning", "can't be tried for free"),
        (405, None, "warning", "can't be tried for free"),
        (302, None, "warning", "redirect"),
        (500, None, "problem", "the upstream fails"),
    ],
)
async def test_each_status_has_its_verdict(
    upstream: ScriptedUpstream, status: int, code: str | None, level: str, word: str
) -> None:
    """What an upstream says to the only key is a problem or not, with a remedy and no word of its
    own, and of the key four characters are shown."""
    chat = [send(error(400, None, "no model"))]
    listing_ = [send(error(status, code, "canary-words"))]
    upstream.script = lambda request: listing_ if request.method == "GET" else chat
    finding = (await examined(url(upstream)))["openai"][1]
    assert finding.level == level
    assert word in finding.text
    assert f"(status {status})" in finding.text
    assert finding.remedy
    assert f"key …{KEY[-4:]}:" in finding.text
    assert "canary" not in finding.text + finding.remedy


async def test_wrong_base_url_is_a_problem(upstream: ScriptedUpstream) -> None:
    """Where there is neither a list of models nor a chat, the address is wrong, not the key."""
    upstream.plays([send(error(404, None, "canary-words"))])
    finding = (await examined(url(upstream) + "/v2"))["openai"][1]
    assert (finding.level, "base_url" in finding.remedy) == ("problem", True)
    assert f"{upstream.port}/v1/v2 is no API like OpenAI's" in finding.text
    assert "canary" not in finding.text
    asked = [(one.method, one.target, one.body) for one in upstream.requests]
    assert asked == [("GET", "/v1/v2/models", b""), ("POST", "/v1/v2/chat/completions", b"{}")]


async def test_upstream_without_a_list_may_do_without_chats(upstream: ScriptedUpstream) -> None:
    """One that is asked for vectors alone can't be tried for free, and that is no problem."""
    upstream.plays([send(error(404, None, "no"))])
    vectors = '[[model]]\nname = "gpt-x"\nendpoints = ["embeddings"]\n'
    assert (await examined(url(upstream), toml=vectors))["openai"][1].level == "warning"


async def test_bad_key_beside_a_good_one_is_a_warning(upstream: ScriptedUpstream) -> None:
    """With one good key left callers are served, so the bad one is named, and no problem."""

    def judge(request: Request) -> Script:
        good = request.header("authorization") == f"Bearer {KEY}"
        return [send(listing("gpt-y") if good else error(401, "invalid_api_key", "no"))]

    upstream.script = judge
    found = (await examined(url(upstream), f"{KEY} {OTHER_KEY}"))["openai"]
    assert [one.level for one in found] == ["ok", "ok", "warning", "ok"]
    assert OTHER_KEY[-4:] in found[2].text


async def test_many_keys_are_asked_a_few_at_a_time(upstream: ScriptedUpstream) -> None:
    """A large pool doesn't look like an attack: connections are few, and reused."""
    upstream.plays([send(listing("gpt-y"))])
    keys = " ".join(f"sk-many-0123456789-{number:04}" for number in range(30))
    found = await examined(url(upstream), keys)
    assert "30 of 30 keys accepted" in found["openai"][1].text
    assert len(upstream.requests) == 30
    assert len(upstream.connections) <= 1 + AT_ONCE_MAX  # the first only goes there


@pytest.mark.parametrize(
    ("clock_s", "level"),
    [(0, "ok"), (20, "warning"), (-20, "warning"), (3600, "problem"), (-3600, "problem")],
)
async def test_clock_is_compared_with_the_upstream(
    upstream: ScriptedUpstream, clock_s: float, level: str
) -> None:
    """A clock that is off by seconds is a warning, by more than a minute a problem: caps follow."""
    upstream.plays([send(listing("gpt-y", clock_s=clock_s))])
    (finding,) = (await examined(url(upstream)))["clock"]
    assert finding.level == level
    assert level == "ok" or ("behind" if clock_s > 0 else "ahead of") in finding.text


async def test_clock_without_a_date_is_not_checked(upstream: ScriptedUpstream) -> None:
    """An upstream that doesn't tell the time isn't taken for one that agrees."""
    upstream.plays([send(answer(200, b'{"data":[]}', ("date", "yesterday")))])
    assert (await examined(url(upstream)))["clock"][0].level == "not checked"


async def test_model_that_is_not_listed_is_named(upstream: ScriptedUpstream) -> None:
    """A model that the account doesn't have is told by the name that is sent."""
    upstream.plays([send(listing("gpt-other"))])
    finding = (await examined(url(upstream)))["openai"][-1]
    assert finding.level == "warning"
    assert "gpt-y" in finding.text


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"data":[7]}', b"<html>", b'{"data":null}'])
async def test_listing_of_another_form_says_nothing_of_models(
    upstream: ScriptedUpstream, body: bytes
) -> None:
    """What isn't OpenAI's listing is no evidence that a model is missing."""
    upstream.plays([send(answer(200, body))])
    assert [one.level for one in (await examined(url(upstream)))["openai"]] == ["ok", "ok"]


async def test_azure_is_asked_in_its_own_way(upstream: ScriptedUpstream) -> None:
    """A key goes in the header and the version in the query that requests have; its list of models
    isn't that of the deployments, so it isn't compared."""
    upstream.plays([send(listing("gpt-other"))])
    toml = f"""
[[upstream]]
name = "azure"
base_url = "{url(upstream)}"
keys_env = "AZURE_KEYS"
auth = "api-key"
api_version = "2024-10-21"
"""
    environ = {"AZURE_KEYS": KEY, "PORT": "0", "FREEAPI_DAILY_USD": "off"}
    found = await examined_config(environ, toml + ONE_MODEL)
    assert [one.level for one in found["azure"]] == ["ok", "ok"]
    (request,) = upstream.requests
    assert request.target == "/v1/models?api-version=2024-10-21"
    assert request.header("api-key") == KEY
    assert request.header("authorization") is None


async def test_server_without_keys_is_asked_without(upstream: ScriptedUpstream) -> None:
    """A local server that wants no key is tried without one."""
    upstream.plays([send(listing("gpt-y"))])
    found = await examined(url(upstream), "")
    assert "no key is wanted" in found["openai"][1].text
    assert upstream.requests[0].header("authorization") is None


# --- Those that don't answer ----------------------------------------------------------------------


async def test_closed_port_is_told(upstream: ScriptedUpstream) -> None:
    """Where nobody listens, that is said, with what to check."""
    with listening_socket() as listener:
        port = listener.getsockname()[1]
    (finding,) = (await examined(f"http://127.0.0.1:{port}/v1"))["openai"]
    assert finding.level == "problem"
    assert "connection failed: nobody listens there" in finding.text


async def test_unknown_name_is_told() -> None:
    """A name without an address fails at the name."""
    (finding,) = (await examined("http://no-such-host.invalid/v1"))["openai"]
    assert finding.level == "problem"
    assert "name failed" in finding.text


@pytest.mark.parametrize("step", [hang(), reset()])
async def test_upstream_that_gives_no_answer_is_told(
    upstream: ScriptedUpstream, step: object
) -> None:
    """One that takes the request and says nothing, or hangs up, is a problem within the time."""
    assert callable(step)
    upstream.plays([step])
    async with asyncio.timeout(PATIENCE_S):  # without ``IMPATIENT`` it would be two minutes
        found = await examined(url(upstream), toml=ONE_MODEL + IMPATIENT)
    assert found["openai"][1].level == "problem"
    assert "no answer to GET /models" in found["openai"][1].text


async def test_endless_listing_is_not_kept(upstream: ScriptedUpstream) -> None:
    """A listing that is too long to be one ends the look at it."""
    beginning = head(200, ("content-length", str(10 * LISTING_BYTES_MAX)))
    upstream.plays([send(beginning), send(b" " * (LISTING_BYTES_MAX + 1)), hang()])
    found = await examined(url(upstream), toml=ONE_MODEL)
    assert "(upstream_garbage)" in found["openai"][1].text


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
async def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tls]:
    """An upstream behind TLS, whose authority this process trusts."""
    authority = trustme.CA()
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(trusted)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    upstream = Tls(authority)
    yield upstream
    await upstream.close()


class Tls(ScriptedUpstream):
    """Not listening yet: the test chooses the certificate."""

    def __init__(self, authority: trustme.CA) -> None:
        """``authority`` is the one that is trusted."""
        super().__init__()
        self.authority = authority

    async def serve(self, certificate: trustme.LeafCert) -> None:
        """Listen with this certificate."""
        context = SSLContext(PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        await self.listen(listening_socket(), context)
        self.plays([send(listing("gpt-y"))])


@pytest.mark.parametrize(
    ("days", "level", "word"),
    [
        (100, "ok", "holds for"),
        (3, "warning", "ends in"),
        (-1, "problem", "TLS failed: its certificate has expired"),
    ],
)
async def test_days_of_the_certificate_are_told(tls: Tls, days: int, level: str, word: str) -> None:
    """A certificate that ends soon is a warning before it is a problem."""
    until = datetime.now(UTC) + timedelta(days=days, hours=1)
    await tls.serve(tls.authority.issue_cert("localhost", not_after=until))
    finding = (await examined(url(tls, "https", "localhost"), toml=ONE_MODEL))["openai"][0]
    assert finding.level == level
    assert word in finding.text


async def test_wrong_certificates_are_told_apart(tls: Tls) -> None:
    """Another name and another authority have other remedies, and no key is sent to either."""
    await tls.serve(tls.authority.issue_cert("other.invalid"))
    (finding,) = (await examined(url(tls, "https", "localhost"), toml=ONE_MODEL))["openai"]
    assert "its certificate is for another name" in finding.text
    stranger = Tls(trustme.CA())
    await stranger.serve(stranger.authority.issue_cert("localhost"))
    (finding,) = (await examined(url(stranger, "https", "localhost"), toml=ONE_MODEL))["openai"]
    await stranger.close()
    assert "authority isn't trusted here" in finding.text
    assert "SSL_CERT_FILE" in finding.remedy
    assert tls.requests == stranger.requests == []


async def test_silence_in_the_handshake_is_told(upstream: ScriptedUpstream) -> None:
    """A server that takes the connection and never speaks TLS fails at TLS, in time."""
    impatient = ONE_MODEL + IMPATIENT
    (finding,) = (await examined(url(upstream, "https"), toml=impatient))["openai"]
    assert "TLS failed: no answer within 0.3 s" in finding.text


async def test_server_without_tls_is_told() -> None:
    """A server that answers the handshake by something else doesn't speak TLS."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, sock=listening_socket())
    port = server.sockets[0].getsockname()[1]
    (finding,) = (await examined(f"https://127.0.0.1:{port}/v1", toml=ONE_MODEL))["openai"]
    server.close()
    assert "TLS failed: what listens there doesn't speak TLS" in finding.text


# --- Through a proxy ------------------------------------------------------------------------------


def proxied(upstream: ScriptedUpstream, proxy: ConnectProxy) -> tuple[dict[str, str], str]:
    """A configuration in which the upstream is reached through the proxy."""
    toml = f"""
[[upstream]]
name = "far"
base_url = "http://far.invalid:{upstream.port}/v1"
keys_env = "FAR_KEYS"
proxy = "http://127.0.0.1:{proxy.port}"
proxy_auth_env = "FAR_PROXY"
"""
    environ = {"FAR_KEYS": KEY, "FAR_PROXY": "user:canary-password", "PORT": "0"}
    return environ | {"FREEAPI_DAILY_USD": "off"}, toml + ONE_MODEL


async def test_upstream_is_reached_through_its_proxy(upstream: ScriptedUpstream) -> None:
    """The proxy is used for the look as well, and resolves the name."""
    upstream.plays([send(listing("gpt-y"))])
    proxy = ConnectProxy(upstream.port)
    await proxy.listen()
    found = await examined_config(*proxied(upstream, proxy))
    proxy.close()
    assert {one.level for one in found["far"]} == {"ok"}
    assert len(proxy.asked) == 2  # the way, and the key


async def test_proxy_that_refuses_is_told_apart_from_the_upstream(
    upstream: ScriptedUpstream,
) -> None:
    """A wrong password is the proxy's failure, and isn't shown."""
    proxy = ConnectProxy(upstream.port)
    proxy.answer, proxy.then = [b"HTTP/1.1 407 canary\r\n\r\n"], "close"
    await proxy.listen()
    (finding,) = (await examined_config(*proxied(upstream, proxy)))["far"]
    proxy.close()
    assert "proxy failed: the proxy answered 407" in finding.text
    assert "proxy_auth_env" in finding.remedy
    assert "canary" not in finding.text
