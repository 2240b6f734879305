"""The banner on upstreams: where requests go, by which way, and nothing that is secret."""

from __future__ import annotations

from freeapi.banner import banner
from freeapi.config import Config
from tests.configs import KEY, OTHER_KEY, read

TOML = """
[[upstream]]
name = "azure"
base_url = "https://x.openai.azure.com/openai/v1"
keys_env = "OPENAI_API_KEYS"
auth = "api-key"
api_version = "preview"
proxy = "http://[::1]:3128"
proxy_auth_env = "LAB_PROXY"
[[upstream]]
name = "gpu"
base_url = "http://gpu.lan/v1"
free = true
"""
ENVIRON = {"OPENAI_API_KEYS": f"{KEY} {OTHER_KEY}", "LAB_PROXY": "lab:canary-password"}


def upstream_line(config: Config) -> str:
    """What the banner says of them."""
    lines = banner(config, "127.0.0.1", 8080).splitlines()
    return next(line.split(maxsplit=1)[1] for line in lines if line.split()[:1] == ["upstream"])


def test_the_way_to_each_upstream_is_told() -> None:
    """An unusual header, a version and a proxy stand beside the number of keys; no password."""
    config = read(ENVIRON, TOML)
    assert upstream_line(config) == (
        "azure at https://x.openai.azure.com/openai/v1 "
        "(2 keys in api-key, version preview, through proxy [::1]:3128), "
        "gpu at http://gpu.lan/v1 (no keys)"
    )
    assert "canary" not in banner(config, "::", 1)


def test_embedded_model_in_reserve_is_told() -> None:
    """That answers may come from another model is said, and so is that all of them do."""
    listed = read(ENVIRON, TOML + "[[model]]\nname = 'm'\nupstreams = ['gpu', 'local']\n")
    exhausted = read(ENVIRON, TOML + "[policy]\nwhen_exhausted = 'local'\n")
    for config in (listed, exhausted):
        assert upstream_line(config).endswith("(in reserve)")
    assert "reserve" not in upstream_line(read(ENVIRON, TOML))
    assert upstream_line(read()).startswith("embedded model ")
