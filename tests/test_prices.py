"""Prices from the shipped table: for which models, and what is said where there is none."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from freeapi import prices
from freeapi.config import Config, ConfigError
from freeapi.policy.models import BUILTIN
from freeapi.policy.price_table import parse_table
from tests.configs import KEY, read

ROOT = Path(__file__).parents[1]
PAID = {"OPENAI_API_KEYS": KEY}


def prices_of(config: Config) -> dict[str, tuple[int | None, int | None]]:
    """Both prices by name."""
    return {
        model.name: (model.input_nanousd_per_mtok, model.output_nanousd_per_mtok)
        for model in config.models
    }


@pytest.mark.parametrize("url", ["https://api.openai.com/v1", "http://127.0.0.1:9/v1"])
def test_builtin_models_have_prices(url: str) -> None:
    """Each model of the built-in table can be served for money without more configuration."""
    priced = prices_of(prices.priced(read({**PAID, "OPENAI_BASE_URL": url})))
    assert list(priced) == [row.name for row in BUILTIN]
    assert all(given and out for given, out in priced.values())
    assert priced["gpt-3.5-turbo"] == priced["gpt-4o-mini"]


def test_known_price_is_openais() -> None:
    """The table's unit is nano-dollars for a million tokens: gpt-4o-mini costs $0.15 and $0.60."""
    config = prices.priced(read(PAID))
    assert prices_of(config)["gpt-4o-mini"] == (150_000_000, 600_000_000)


def test_cache_writes_and_long_context_are_in_the_bound() -> None:
    """Of gpt-6-luna's prices the highest tier and the cache's surcharge count."""
    config = prices.priced(read(PAID))
    assert prices_of(config)["gpt-6-luna"] == (250_000_000, 750_000_000)


def test_configured_prices_win() -> None:
    """What the operator says stands, for each of the two."""
    toml = "[[model]]\nname = 'gpt-4o-mini'\ninput_usd_per_mtok = 0.5"
    assert prices_of(prices.priced(read(PAID, toml)))["gpt-4o-mini"] == (500_000_000, 600_000_000)
    toml = "[[model]]\nname = 'gpt-4o-mini'\noutput_usd_per_mtok = 7"
    assert prices_of(prices.priced(read(PAID, toml)))["gpt-4o-mini"] == (150_000_000, 7 * 10**9)


UPSTREAMS = """
[[upstream]]
name = "paid"
base_url = "https://api.openai.com/v1"
keys_env = "OPENAI_API_KEYS"
[[upstream]]
name = "eu"
base_url = "https://eu.api.openai.com/v1"
keys_env = "OPENAI_API_KEYS"
[[upstream]]
name = "gpu"
base_url = "http://127.0.0.1:9/v1"
free = true
"""


def test_paid_models_without_a_price_are_all_named() -> None:
    """Every model that money is asked for and whose price nobody knows stops the start."""
    toml = UPSTREAMS + "".join(
        f"[[model]]\n{line}\n"
        for line in (
            "name = 'made-up'",
            "name = '*'",
            "name = 'half'\ninput_usd_per_mtok = 1",
            "name = 'served-free'\nupstreams = ['gpu']",
            "name = 'embedded'\nupstreams = ['local']",
            "name = 'whole'\ninput_usd_per_mtok = 1\noutput_usd_per_mtok = 1",
            "name = 'gpt-4o-mini'",
        )
    )
    with pytest.raises(ConfigError) as caught:
        prices.priced(read(PAID, toml))
    named = [problem.name for problem in caught.value.problems]
    assert named == ["[[model]] 'made-up'", "[[model]] '*'", "[[model]] 'half'"]
    assert "input_usd_per_mtok and output_usd_per_mtok" in str(caught.value)


# --- Other endpoints than chat --------------------------------------------------------------------


def served(endpoints: str, *lines: str, name: str = "made-up") -> str:
    """A model of these endpoints, of which nobody knows a price."""
    return f"[[model]]\nname = '{name}'\nendpoints = {endpoints}\n" + "\n".join(lines)


def test_embedding_models_have_a_price_of_input_alone() -> None:
    """The table's price is taken; an endpoint without output needs none of it."""
    config = prices.priced(read(PAID, served("['embeddings']", name="text-embedding-3-small")))
    assert prices_of(config) == {"text-embedding-3-small": (20_000_000, None)}
    config = prices.priced(read(PAID, served("['embeddings']", "input_usd_per_mtok = 1")))
    assert prices_of(config) == {"made-up": (1_000_000_000, None)}


def test_embedding_model_cannot_chat_for_nothing() -> None:
    """Without output of its own it has no price of it: at a chat endpoint that is a problem."""
    toml = served("['embeddings', 'chat']", name="text-embedding-3-small")
    with pytest.raises(ConfigError) as caught:
        prices.priced(read(PAID, toml))
    (problem,) = caught.value.problems
    assert problem.allowed.startswith("output_usd_per_mtok here")


def test_moderation_at_openai_is_free() -> None:
    """A model that serves nothing else needs no price there; elsewhere, or with more, it does."""
    moderation = served("['moderations']", name="omni-moderation-latest")
    assert prices_of(prices.priced(read(PAID, moderation))) == {"omni-moderation-latest": (0, None)}
    for environ, toml in (
        ({**PAID, "OPENAI_BASE_URL": "https://elsewhere.example/v1"}, moderation),
        (PAID, moderation.replace("['moderations']", "['moderations', 'embeddings']")),
    ):
        with pytest.raises(ConfigError, match="input_usd_per_mtok here"):
            prices.priced(read(environ, toml))


@pytest.mark.parametrize("endpoint", ["images", "speech", "transcriptions", "translations"])
def test_what_is_billed_by_the_piece_needs_a_bound(endpoint: str) -> None:
    """Images and sound want unit_usd, and then no price of tokens."""
    with pytest.raises(ConfigError) as caught:
        prices.priced(read(PAID, served(f"['{endpoint}']", name="gpt-4o-mini")))
    (problem,) = caught.value.problems
    assert problem.found == f"no bound on what {endpoint} may cost"
    assert problem.allowed.startswith("unit_usd here")
    config = prices.priced(read(PAID, served(f"['{endpoint}']", "unit_usd = 0.08")))
    assert prices_of(config) == {"made-up": (None, None)}
    assert config.models[0].unit_nanousd == 80_000_000


def test_a_model_of_many_endpoints_needs_all_their_prices() -> None:
    """What lacks a price of tokens and of units is told both, together with all others."""
    toml = served("['chat', 'images', 'speech']") + "\n" + served("['responses']", name="other")
    with pytest.raises(ConfigError) as caught:
        prices.priced(read(PAID, toml))
    assert [problem.name for problem in caught.value.problems] == [
        "[[model]] 'made-up'",
        "[[model]] 'made-up'",
        "[[model]] 'other'",
    ]
    assert "no bound on what images, speech may cost" in str(caught.value)
    toml = served("['chat', 'images']", "unit_usd = 1", name="gpt-4o-mini")
    config = prices.priced(read(PAID, toml))
    assert prices_of(config) == {"gpt-4o-mini": (150_000_000, 600_000_000)}


def test_prices_of_tokens_bound_what_a_unit_may_cost() -> None:
    """Without unit_usd, one image or file is reserved at more tokens than any takes."""
    toml = served("['images']", "input_usd_per_mtok = 5\noutput_usd_per_mtok = 40")
    (model,) = prices.priced(read(PAID, toml)).models
    assert model.unit_nanousd == prices.TOKENS_PER_UNIT * 45_000


def test_free_upstreams_need_no_price_of_anything() -> None:
    """A local server may speak and paint without a price."""
    toml = UPSTREAMS + served("['images', 'speech', 'embeddings', 'chat']", "upstreams = ['gpu']")
    config = read(PAID, toml)
    assert prices.priced(config) is config


# --- The table ------------------------------------------------------------------------------------


def test_deployments_of_azure_are_priced_as_azures() -> None:
    """A name that the table has there is found; a deployment's own name needs prices beside it."""
    toml = (
        "[[upstream]]\nname = 'azure'\nkeys_env = 'OPENAI_API_KEYS'\nauth = 'api-key'\n"
        "base_url = 'https://lab.openai.azure.com/openai/deployments/x'\n[[model]]\nname = '{}'"
    )
    found = prices_of(prices.priced(read(PAID, toml.format("o3-mini"))))
    assert found == {"o3-mini": (1_100_000_000, 4_400_000_000)}
    with pytest.raises(ConfigError):
        prices.priced(read(PAID, toml.format("my-deployment")))


def test_dearest_upstream_counts() -> None:
    """A model that several upstreams serve is reserved at the highest of their prices."""
    toml = UPSTREAMS + "[[model]]\nname = 'gpt-4o-mini'\n"
    config = prices.priced(read(PAID, toml))
    assert prices_of(config)["gpt-4o-mini"] == (165_000_000, 660_000_000)


def test_table_is_not_read_where_no_price_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without paid upstreams, or with all prices given, the start doesn't pay for the table."""
    monkeypatch.setattr(prices, "TABLE_PATH", tmp_path / "missing")
    local = read()
    assert prices.priced(local) is local
    toml = "[[model]]\nname = 'x'\ninput_usd_per_mtok = 1\noutput_usd_per_mtok = 1"
    full = read(PAID, toml)
    assert prices.priced(full) is full
    with pytest.raises(FileNotFoundError):
        prices.priced(read(PAID))


def test_table_is_what_the_package_says() -> None:
    """The shipped table is what scripts/prices makes of the locked genai-prices on its day."""
    script = runpy.run_path(str(ROOT / "scripts" / "prices"))
    table = parse_table(prices.TABLE_PATH.read_bytes())
    day = datetime.fromisoformat(table.source.split("in force on ")[1][:10]).replace(tzinfo=UTC)
    made = {"source": table.source, "sellers": script["sellers"](day)}
    assert parse_table(msgspec.json.encode(made)) == table
