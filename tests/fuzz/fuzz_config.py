"""Fuzz the configuration: any TOML text, environment and files load, or are refused in words.

The input is three texts with a NUL between: the file ``freeapi.toml``, lines ``NAME=value`` of the
environment, and the text of whatever other file is asked for (keys, access tokens). A refusal lists
problems, each with its place, what was found and what would do; and whatever can be shown shows no
key.
"""

from __future__ import annotations

from freeapi.config import Config, ConfigError, load
from freeapi.showing import render
from freeapi.spelling import TAIL_SECRET_CHARS_MIN
from tests.fuzz.driver import fuzz

SEEDS = (
    b'[[upstream]]\nname = "a"\nbase_url = "http://127.0.0.1:1/v1"\nkeys_env = "K"\nfree = true\n'
    b'[[model]]\nname = "m"\nupstream_model = "n"\nrpm = 3\nupstreams = ["a"]\n'
    b'endpoints = ["chat"]\n'
    b"[policy]\nn_max = 2\n[timeouts]\nconnect_s = 0.5\n\0K=sk-0123456789abcdef sk-x\nPORT=0",
    b"\0OPENAI_API_KEYS=sk-canary-0123456789\nOPENAI_BASE_URL=https://[::1]:8/v1\nHOST=::1\n"
    b"FREEAPI_DAILY_USD=1.5\nFREEAPI_CALLER_DAILY_USD=0.05%\nFREEAPI_STATE=redis://u:p@h/1",
    b"\0OPENAI_API_KEYS_FILE=f\nFREEAPI_ACCESS_TOKENS_FILE=f\nFREEAPI_LOG=debug\0"
    b"# comment\ntoken-0123456789 name rpm=5 tpm=off\n",
    b'[[model]]\nname = "*"\ninput_usd_per_mtok = 1e400\noutput_usd_per_mtok = nan\nrpm = -1\n'
    b"[timeouts]\nidle_s = inf\ntotal_s = 1979-05-27T07:32:00Z\n[policy]\nn_max = true\n\0",
    b"model = 1\nupstream = [1]\npolicy = []\nx.y.z = 0\n"
    b"\0FREEAPI_CALER_RPM=1\nFREEAPI_QUEUE_S=1e9",
    b'[[upstream]]\nname = "a"\nkeys_file = "f"\n[[upstream]]\nname = "a"\n'
    b'daily_usd = "off"\n\0\0\xff',
    b'[[upstream]]\nname = "a"\nbase_url = "https://r.openai.azure.com/openai/deployments/d"\n'
    b'keys_env = "K"\nauth = "api-key"\napi_version = "2024-10-21"\nproxy = "http://[::1]:3128"\n'
    b'proxy_auth_env = "P"\n[[model]]\nname = "i"\nendpoints = ["images"]\nunit_usd = 0.04\n'
    b'[[model]]\nname = "m"\nupstreams = ["local", "a"]\n'
    b"\0K=sk-0123456789abcdef\nP=lab:sk-pa:ss-word",
)


def loaded(data: bytes) -> Config | ConfigError:
    """What is made of the texts."""
    toml, environment, file = [*data.split(b"\0", 2), b"", b""][:3]
    # As Python itself takes over what isn't UTF-8 in the environment.
    lines = environment.decode("utf-8", "surrogateescape").split("\n")
    environ = {
        name: value for name, found, value in (line.partition("=") for line in lines) if found
    }
    try:
        return load(
            environ, toml.decode("utf-8", "replace"), read_file=lambda path: file.decode("utf-8")
        )
    except ConfigError as error:
        return error


def secrets(config: Config) -> set[str]:
    """The keys and passwords that are too long to be part of something else by chance."""
    keys = {key.reveal() for upstream in config.upstreams for key in upstream.keys}
    passwords = {one.proxy_auth.reveal() for one in config.upstreams if one.proxy_auth is not None}
    return {
        secret
        for secret in keys | {password.partition(":")[2] for password in passwords}
        if len(secret) >= TAIL_SECRET_CHARS_MIN and secret.startswith("sk-")
    }


def check(data: bytes) -> None:
    """It loads to the same each time and can be shown without its keys, or says what is wrong."""
    found = loaded(data)
    if isinstance(found, ConfigError):
        assert found.problems
        assert all(one.name and one.found and one.allowed for one in found.problems)
        assert all(str(one) in str(found) for one in found.problems)
        return
    assert loaded(data) == found
    shown = render(found) + repr(found)
    assert not any(secret in shown for secret in secrets(found)), "a key is shown"


if __name__ == "__main__":
    fuzz("config", check, SEEDS)
