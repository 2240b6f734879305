"""Keys and upstreams: how the environment and the file are joined, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest

from freeapi.config import ConfigError
from freeapi.providers import Upstream
from freeapi.spelling import Address, Password, Secret
from tests.configs import KEY, OTHER_KEY, TWO_UPSTREAMS, problems, read, read_none


def reveal(upstream: Upstream) -> list[str]:
    """The keys' texts."""
    return [key.reveal() for key in upstream.keys]


def test_the_first_of_the_three_key_variables_counts() -> None:
    """OPENAI_API_KEYS, then OPENAI_API_KEY, then the file; the others are warned about."""
    files = {"/keys": f"# the lab's\n{KEY}\n  # a guest's\n{OTHER_KEY}\n"}
    environ = {"OPENAI_API_KEYS_FILE": "/keys"}
    config = read(environ, read_file=files.__getitem__)
    assert reveal(config.upstreams[0]) == [KEY, OTHER_KEY]
    assert config.warnings == ()
    environ["OPENAI_API_KEY"] = "sk-one"
    config = read(environ)
    assert reveal(config.upstreams[0]) == ["sk-one"]
    assert config.warnings == ("OPENAI_API_KEYS_FILE isn't used, since OPENAI_API_KEY is set",)
    environ["OPENAI_API_KEYS"] = "sk-two"
    config = read(environ)
    assert reveal(config.upstreams[0]) == ["sk-two"]
    assert len(config.warnings) == 2


def undecodable(path: str) -> str:
    """A file that isn't text."""
    return b"\xff".decode()


@pytest.mark.parametrize(
    ("read_file", "why"),
    [(read_none, "No such file"), (undecodable, "not UTF-8"), (lambda _: "# none", "no key in it")],
)
@pytest.mark.parametrize(
    ("environ", "toml", "place"),
    [
        ({"OPENAI_API_KEYS_FILE": KEY}, None, "OPENAI_API_KEYS_FILE"),
        (
            {},
            f"[[upstream]]\nname = 'a'\nkeys_file = '{KEY}'",
            "freeapi.toml: [[upstream]] 1 'a': keys_file",
        ),
    ],
)
def test_a_file_of_keys_that_gives_none_is_a_problem(
    environ: dict[str, str], toml: str | None, place: str, read_file: Any, why: str
) -> None:
    """It says why, and doesn't repeat the path, which may be a key in the wrong variable."""
    (problem,) = problems(environ, toml, read_file=read_file)
    assert problem.startswith(f"{place}: ")
    assert why in problem
    assert "canary" not in problem


def test_access_tokens_are_read_whole_and_hidden() -> None:
    """The file's text is kept; one that can't be read, or holds no token, is a problem."""
    environ = {"FREEAPI_ACCESS_TOKENS_FILE": "/tokens"}
    text = f"{KEY} alice\n"
    config = read(environ, read_file={"/tokens": text}.__getitem__)
    assert config.access_tokens == Secret(text)
    assert "canary" not in repr(config)
    (problem,) = problems(environ)
    assert problem.startswith("FREEAPI_ACCESS_TOKENS_FILE: ")
    with pytest.raises(ConfigError, match="no token"):
        read(environ, read_file=lambda _: "")
    with pytest.raises(ConfigError, match="line 1: rpm must be"):
        read(environ, read_file=lambda _: f"{KEY} rpm=none")


@pytest.mark.parametrize(
    ("text", "parts", "shown"),
    [
        (
            "https://api.openai.com/v1",
            ("https", "api.openai.com", 443, "/v1"),
            "https://api.openai.com/v1",
        ),
        ("HTTP://LocalHost:8081/", ("http", "localhost", 8081, ""), "http://localhost:8081"),
        ("http://[::1]:80/a/b//", ("http", "::1", 80, "/a/b"), "http://[::1]/a/b"),
        ("https://x_y:8443", ("https", "x_y", 8443, ""), "https://x_y:8443"),
        ("https://h/p%20q@~", ("https", "h", 443, "/p%20q@~"), "https://h/p%20q@~"),
    ],
)
def test_a_base_url_is_taken_apart(text: str, parts: tuple[Any, ...], shown: str) -> None:
    """Scheme and host in lower case, the port or its default, the path without a last slash."""
    (upstream,) = read({"OPENAI_API_KEYS": KEY, "OPENAI_BASE_URL": text}).upstreams
    assert (upstream.scheme, upstream.host, upstream.port, upstream.base_path) == parts
    assert upstream.base_url == shown
    assert upstream.name == "openai"
    assert not upstream.free


@pytest.mark.parametrize(
    ("url", "openai", "loopback"),
    [
        ("https://api.openai.com/v1", True, False),
        ("https://eu.api.openai.com/v1", True, False),
        ("https://notapi.openai.com/v1", False, False),
        ("https://api.openai.com.example/v1", False, False),
        ("http://127.0.0.53/", False, True),
        ("http://127.0.0.1.example/", False, False),
        ("http://[::1]:1/", False, True),
        ("http://localhost/", False, True),
    ],
)
def test_an_upstream_knows_whose_it_is(url: str, openai: bool, loopback: bool) -> None:
    """OpenAI's own hosts and this machine's are told from those that only look like them."""
    (upstream,) = read({"OPENAI_API_KEYS": KEY, "OPENAI_BASE_URL": url}).upstreams
    assert (upstream.is_openai, upstream.is_loopback) == (openai, loopback)


def test_a_server_without_keys_is_an_upstream_that_costs_nothing() -> None:
    """OPENAI_BASE_URL alone is enough, except at OpenAI's, where the embedded model answers."""
    (upstream,) = read({"OPENAI_BASE_URL": "http://localhost:11434/v1"}).upstreams
    assert upstream.keys == ()
    assert upstream.free
    assert read({"OPENAI_BASE_URL": "https://api.openai.com/v1"}).local


def test_unencrypted_keys_are_warned_about() -> None:
    """Plain http with keys is fine on this machine, and a warning elsewhere."""
    environ = {"OPENAI_API_KEYS": KEY, "OPENAI_BASE_URL": "http://gpu.lan:8000/v1"}
    (warning,) = read(environ).warnings
    assert "http://gpu.lan:8000/v1 unencrypted" in warning
    assert read({**environ, "OPENAI_BASE_URL": "http://127.0.0.1/v1"}).warnings == ()
    assert read({"OPENAI_BASE_URL": "http://gpu.lan:8000/v1"}).warnings == ()


def test_the_files_upstreams_are_read() -> None:
    """Each [[upstream]] has its keys, cap, priority and share; OPENAI_API_KEYS isn't mixed in."""
    environ = {"LAB_KEYS": KEY, "OPENAI_API_KEYS": OTHER_KEY, "OPENAI_BASE_URL": "http://x/"}
    config = read(environ, TWO_UPSTREAMS)
    assert config.upstreams == (
        Upstream(
            "lab", "https", "api.openai.com", 443, "/v1", (Secret(KEY),), 3_000_000_000, priority=2
        ),
        Upstream("gpu", "http", "gpu.lan", 80, "/v1", share=3, free=True),
    )
    assert [warning.split()[0] for warning in config.warnings] == [
        "OPENAI_API_KEYS",
        "OPENAI_BASE_URL",
    ]


def test_an_upstream_may_refer_to_the_pool_or_to_any_variable() -> None:
    """keys_env = OPENAI_API_KEYS is the pool under all its names; a FREEAPI_ name is fine, too."""
    toml = "[[upstream]]\nname = 'a'\nkeys_env = '{}'"
    config = read({"OPENAI_API_KEY": KEY}, toml.format("OPENAI_API_KEYS"))
    assert reveal(config.upstreams[0]) == [KEY]
    assert config.warnings == ()
    config = read({"FREEAPI_LAB_KEYS": KEY}, toml.format("FREEAPI_LAB_KEYS"))
    assert reveal(config.upstreams[0]) == [KEY]


@pytest.mark.parametrize(
    ("toml", "place", "words"),
    [
        ("[[upstream]]\nbase_url='http://h'", "1 '': name", "required"),
        ("[[upstream]]\nname='a b'\nbase_url='http://h'", "1 'a b': name", "1 to 32 letters"),
        ("[[upstream]]\nname='a'", "1 'a'", "no keys"),
        ("[[upstream]]\nname='a'\nbase_url='nowhere'", "1 'a': base_url", "http://"),
        ("[[upstream]]\nname='a'\nkeys_env='NONE'", "1 'a': keys_env", "NONE, which isn't set"),
        (
            "[[upstream]]\nname='a'\nkeys_env='OPENAI_API_KEYS'",
            "1 'a': keys_env",
            "OPENAI_API_KEYS, which isn't set",
        ),
        (f"[[upstream]]\nname='a'\nkeys_env='{KEY}'", "1 'a': keys_env", "not shown"),
        ("[[upstream]]\nname='a'\nkeys_env='gsk_canary'", "1 'a': keys_env", "not shown"),
        ("[[upstream]]\nname='a'\nkeys_env='A'\nkeys_file='b'", "1 'a'", "one of the two"),
        ("[[upstream]]\nname='a'\nkeys=['sk-canary']", "1 'a': keys", "did you mean keys_env?"),
        (
            "[[upstream]]\nname='a'\nbase_url='http://h'\nshare=0",
            "1 'a': share",
            "from 1 to 1000",
        ),
        (
            "[[upstream]]\nname='a'\nbase_url='http://h'\nfree='sometimes'",
            "1 'a': free",
            "true or false",
        ),
        (
            "[[upstream]]\nname='a'\nbase_url='http://h'\ndaily_usd=true",
            "1 'a': daily_usd",
            "dollars",
        ),
        (
            "[[upstream]]\nname='a'\nbase_url='http://h'\n" * 2,
            "2 'a': name",
            "a name that no other one has",
        ),
    ],
)
def test_a_wrong_upstream_is_a_problem(toml: str, place: str, words: str) -> None:
    """Each mistake in an [[upstream]] is one problem (two where the name is all), at its place."""
    found = problems({}, toml)
    assert any(
        problem.startswith(f"freeapi.toml: [[upstream]] {place}: ") and words in problem
        for problem in found
    )
    assert len(found) <= (2 if "keys=" in toml else 1)
    assert not any("canary" in problem for problem in found)


def test_a_wrong_key_of_an_upstream_is_a_problem_of_its_variable() -> None:
    """The variable that keys_env names is the place to mend."""
    (problem,) = problems({"LAB_KEYS": f"'{KEY}'"}, TWO_UPSTREAMS)
    assert problem.startswith("LAB_KEYS: ")
    assert "canary" not in problem


AZURE = """
[[upstream]]
name = "azure"
base_url = "https://lab.openai.azure.com/openai/deployments/gpt-4o-mini"
keys_env = "AZURE_KEYS"
auth = "api-key"
api_version = "2024-10-21"
proxy = "http://Proxy.LAN:3128/"
proxy_auth_env = "FREEAPI_LAB_PROXY"
"""
PASSWORD = "lab:canary-pass:word"


def test_azure_and_a_proxy_are_read() -> None:
    """A deployment's path is kept; header, version, proxy and password stand beside it."""
    (azure,) = read({"AZURE_KEYS": KEY, "FREEAPI_LAB_PROXY": PASSWORD}, AZURE).upstreams
    assert azure.base_path == "/openai/deployments/gpt-4o-mini"
    assert (azure.auth, azure.api_version) == ("api-key", "2024-10-21")
    assert (azure.proxy, azure.proxy_auth) == (Address("proxy.lan", 3128), Password(PASSWORD))
    assert not azure.is_openai
    (plain,) = read({"AZURE_KEYS": KEY}, AZURE.partition("auth =")[0]).upstreams
    assert (plain.auth, plain.api_version, plain.proxy, plain.proxy_auth) == (
        "bearer",
        None,
        None,
        None,
    )


def test_proxies_of_the_environment_are_not_trusted() -> None:
    """Only the file names a proxy: what other programs are told doesn't count here."""
    names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    environ = {"OPENAI_API_KEYS": KEY, **dict.fromkeys(names, "http://proxy:3128")}
    assert read(environ) == read({"OPENAI_API_KEYS": KEY})


@pytest.mark.parametrize(
    ("lines", "key", "words"),
    [
        ("auth = 'basic'", "auth", "bearer or api-key"),
        ("api_version = 2024-10-21", "api_version", "a version in quotes"),
        ("api_version = ''", "api_version", "a version in quotes"),
        ("api_version = '1&model=x'", "api_version", "a version in quotes"),
        ("api_version = '1 HTTP/1.1'", "api_version", "a version in quotes"),
        ('api_version = "1\\r\\nhost: x"', "api_version", "a version in quotes"),
        ("proxy = 'https://proxy:3128'", "proxy", "http://host:port"),
        ("proxy = 'http://proxy'", "proxy", "http://host:port"),
        ("proxy = 'http://proxy:0'", "proxy", "the port is not one"),
        ("proxy = 'http://proxy:65536'", "proxy", "the port is not one"),
        ("proxy = 'http://proxy:3128/path'", "proxy", "http://host:port"),
        ("proxy = 'http://lab:canary@proxy:3128'", "proxy", "not shown"),
        ("proxy = 'socks5://proxy:1080'", "proxy", "http://host:port"),
        ("proxy = 'proxy:3128'", "proxy", "http://host:port"),
        ("proxy = 3128", "proxy", "http://host:port"),
        (
            "proxy = 'http://p:1'\nproxy_auth_env = 'NONE'",
            "proxy_auth_env",
            "NONE, which isn't set",
        ),
        (
            "proxy = 'http://p:1'\nproxy_auth_env = 'lab:canary'",
            "proxy_auth_env",
            "not shown",
        ),
        ("proxy_auth_env = 'LAB'", "proxy_auth_env", "no proxy that it is for"),
    ],
)
def test_a_wrong_way_to_an_upstream_is_a_problem(lines: str, key: str, words: str) -> None:
    """Header, version and proxy are as strict as what they end up in; no password is repeated."""
    toml = f"[[upstream]]\nname = 'a'\nbase_url = 'http://h'\n{lines}"
    (problem,) = problems({"LAB": "lab:canary"}, toml)
    assert problem.startswith(f"freeapi.toml: [[upstream]] 1 'a': {key}: ")
    assert words in problem
    assert "canary" not in problem


@pytest.mark.parametrize("text", ["canary", "canary\x00:pass", "lab:canary\npass", "a:canary\x7f"])
def test_a_wrong_password_is_a_problem_of_its_variable(text: str) -> None:
    """Without a colon, or with a control character, it is none; it isn't repeated."""
    (problem,) = problems({"AZURE_KEYS": KEY, "FREEAPI_LAB_PROXY": text}, AZURE)
    assert problem.startswith("FREEAPI_LAB_PROXY: ")
    assert "user:password" in problem
    assert "canary" not in problem


def test_an_api_key_header_wants_a_key() -> None:
    """``auth = "api-key"`` without keys would send nothing, which can't be meant."""
    (problem,) = problems({}, "[[upstream]]\nname='a'\nbase_url='http://h'\nauth='api-key'")
    assert problem.startswith("freeapi.toml: [[upstream]] 1 'a': found no keys")


@pytest.mark.parametrize(
    ("base_url", "proxy", "warned"),
    [
        ("https://h/v1", "http://127.0.0.1:3128", []),
        ("https://h/v1", "http://proxy:3128", ["password goes to proxy:3128 unencrypted"]),
        ("http://127.0.0.1/v1", "http://[::1]:3128", []),
        (
            "http://localhost/v1",
            "http://proxy:3128",
            ["keys and texts go to http://localhost/v1 unencrypted", "password goes to proxy"],
        ),
        ("http://h/v1", "http://localhost:3128", ["keys and texts go to http://h/v1"]),
    ],
)
def test_what_a_proxy_can_read_is_warned_about(
    base_url: str, proxy: str, warned: list[str]
) -> None:
    """A proxy elsewhere sees its own password, and all of a plain upstream's requests."""
    toml = (
        f"[[upstream]]\nname='a'\nbase_url='{base_url}'\nkeys_env='K'\n"
        f"proxy='{proxy}'\nproxy_auth_env='P'"
    )
    warnings = read({"K": KEY, "P": "lab:canary"}, toml).warnings
    assert len(warnings) == len(warned)
    assert all(words in warning for words, warning in zip(warned, warnings, strict=True))
    assert "canary" not in " ".join(warnings)
