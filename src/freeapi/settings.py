"""The settings: their names, defaults, kinds and meanings, one row each.

``ENVIRONMENT`` is the environment's table; ``UPSTREAM``, ``MODEL``, ``POLICY``, ``PAGE`` and
``TIMEOUTS`` are those of ``freeapi.toml``. The reference in the docs and ``.env.example`` follow
from these rows.

What this is not: it reads nothing, and it doesn't know how settings depend on one another: both are
``config``'s.

Invariants:
- A default is spelled as one would write it, and goes through the same parser.
- What isn't in a table is unknown, and stops the start.
"""

from __future__ import annotations

from typing import Final, get_args

import msgspec

from freeapi.policy.models import Endpoint, OutputField
from freeapi.spelling import (
    ADDRESS,
    API_VERSION,
    BASE_URL,
    BODY_BYTES,
    CONTACT,
    COUNT,
    FLAG,
    HOST,
    KEYS,
    LINE,
    MODEL_NAME,
    NAME,
    PATH,
    PROXY,
    SECRET_PATH,
    SHARE_OR_USD,
    STATE,
    SWITCH,
    USD,
    VARIABLE,
    WEB_PAGE,
    Kind,
    choice,
    off,
    seconds,
    several,
    whole,
)


class Setting(msgspec.Struct, frozen=True):
    """One row: ``default`` is spelled as one would write it, ``None`` where there is none."""

    name: str
    field: str
    default: str | None
    kind: Kind
    meaning: str


_ENDPOINTS: Final = get_args(Endpoint)
_TIMEOUT: Final = seconds(0.001, 86_400)

OPENAI_BASE_URL: Final = "https://api.openai.com/v1"

ENVIRONMENT: Final[tuple[Setting, ...]] = (
    Setting(
        "OPENAI_API_KEYS",
        "keys",
        None,
        KEYS,
        "Pool of upstream keys. None: the embedded model answers",
    ),
    Setting("OPENAI_API_KEY", "key", None, KEYS, "The same, where OPENAI_API_KEYS isn't set"),
    Setting(
        "OPENAI_API_KEYS_FILE",
        "keys_file",
        None,
        SECRET_PATH,
        "The same from a file, where neither is set; lines that start with # are skipped",
    ),
    Setting(
        "OPENAI_BASE_URL",
        "base_url",
        OPENAI_BASE_URL,
        BASE_URL,
        "The upstream. Elsewhere than at api.openai.com it may go without keys",
    ),
    Setting("HOST", "host", "127.0.0.1", HOST, "Where to listen"),
    Setting("PORT", "port", "8080", whole(0, 65_535), "The port to listen on; 0: any free one"),
    Setting(
        "FREEAPI_CONFIG",
        "config_path",
        None,
        PATH,
        "Models, limits and upstreams; freeapi.toml if there is one",
    ),
    Setting(
        "FREEAPI_STATE",
        "state",
        "memory",
        STATE,
        "Where the counters live: this process, or one Valkey (or Redis) from 7.2 that all "
        "replicas share; no Sentinel, no Cluster: a failover may forget what was spent",
    ),
    Setting(
        "FREEAPI_DATA_DIR",
        "data_dir",
        None,
        PATH,
        "Where the spend ledger lives; the user's state directory if not set",
    ),
    Setting(
        "FREEAPI_DAILY_USD",
        "daily_nanousd",
        "5",
        off(USD),
        "Hard spend cap of a UTC day over all paid upstreams",
    ),
    Setting("FREEAPI_MONTHLY_USD", "monthly_nanousd", "off", off(USD), "The same of a UTC month"),
    Setting("FREEAPI_CALLER_RPM", "caller_rpm", "20", off(COUNT), "One caller's requests a minute"),
    Setting(
        "FREEAPI_CALLER_TPM", "caller_tpm", "40000", off(COUNT), "One caller's tokens a minute"
    ),
    Setting(
        "FREEAPI_CALLER_RPD", "caller_rpd", "1000", off(COUNT), "One caller's requests in a UTC day"
    ),
    Setting(
        "FREEAPI_CALLER_CONCURRENCY",
        "caller_concurrency",
        "8",
        off(COUNT),
        "One caller's requests at the same time",
    ),
    Setting(
        "FREEAPI_CALLER_DAILY_USD",
        "caller_daily",
        "5%",
        off(SHARE_OR_USD),
        "One caller's share of the daily cap (nothing where that is off), or dollars",
    ),
    Setting(
        "FREEAPI_MAX_OUTPUT_TOKENS",
        "max_output_tokens",
        "1024",
        whole(1, 1_000_000),
        "Ceiling put on every request's output tokens",
    ),
    Setting(
        "FREEAPI_MAX_BODY_BYTES",
        "max_body_bytes",
        "1048576",
        BODY_BYTES,
        "Larger JSON bodies get 413",
    ),
    Setting(
        "FREEAPI_MAX_UPLOAD_BYTES",
        "max_upload_bytes",
        "26214400",
        BODY_BYTES,
        "The same for multipart bodies (audio)",
    ),
    Setting(
        "FREEAPI_MAX_CONNECTIONS",
        "max_connections",
        None,
        whole(1, 1_000_000),
        "Connections in all; from the open-files limit if not set",
    ),
    Setting(
        "FREEAPI_MAX_CONNECTIONS_PER_ADDRESS",
        "max_connections_per_address",
        "256",
        whole(1, 1_000_000),
        "Connections of one address; not applied to trusted proxies",
    ),
    Setting(
        "FREEAPI_QUEUE_S",
        "queue_s",
        "10",
        seconds(0, 600),
        "Longest wait in the fair queue; 0: none",
    ),
    Setting(
        "FREEAPI_PROXY_HOPS",
        "proxy_hops",
        "0",
        whole(0, 16),
        "How many trusted proxies append to X-Forwarded-For; 0: the header is ignored",
    ),
    Setting(
        "FREEAPI_ADMIN_ADDR",
        "admin",
        "127.0.0.1:9464",
        off(ADDRESS),
        "Metrics and operator pages, never on the public port",
    ),
    Setting(
        "FREEAPI_ACCESS_TOKENS_FILE",
        "access_tokens",
        None,
        SECRET_PATH,
        "If set, only the bearer tokens in it may call; else everyone may",
    ),
    Setting(
        "FREEAPI_LOG",
        "log",
        "info",
        choice("debug", "info", "warning", "error"),
        "Level of the content-free JSON lines on stderr",
    ),
    Setting(
        "FREEAPI_REQUEST_LOG",
        "request_log",
        "off",
        SWITCH,
        "on: one content-free, caller-free line per request",
    ),
    Setting(
        "FREEAPI_DRAIN_S",
        "drain_s",
        "25",
        seconds(0, 3_600),
        "After SIGTERM, how long open streams may finish",
    ),
)

UPSTREAM: Final[tuple[Setting, ...]] = (
    Setting(
        "name",
        "name",
        None,
        NAME,
        "What it is called in the log and the metrics; required",
    ),
    Setting("base_url", "url", OPENAI_BASE_URL, BASE_URL, "Where it is"),
    Setting(
        "keys_env",
        "keys_env",
        None,
        VARIABLE,
        "The variable that holds its keys",
    ),
    Setting("keys_file", "keys_file", None, SECRET_PATH, "The file that holds its keys"),
    Setting(
        "daily_usd",
        "daily_nanousd",
        "off",
        off(USD),
        "This donor's own cap of a UTC day, inside the global one",
    ),
    Setting("priority", "priority", "1", whole(0, 1_000), "The lower is tried first"),
    Setting("share", "share", "1", whole(1, 1_000), "Its part of the load among equal priorities"),
    Setting("free", "free", "false", FLAG, "It costs nothing (a local server) and needs no prices"),
    Setting(
        "auth",
        "auth",
        "bearer",
        choice("bearer", "api-key"),
        "The header that a key is sent in: Authorization: Bearer, or api-key, as Azure wants it",
    ),
    Setting(
        "api_version",
        "api_version",
        None,
        API_VERSION,
        "Sent as ?api-version=... behind every path, as Azure's dated APIs want it",
    ),
    Setting(
        "proxy",
        "proxy_address",
        None,
        PROXY,
        "The HTTP proxy (CONNECT) through which it is reached; the environment's is never used",
    ),
    Setting(
        "proxy_auth_env",
        "proxy_auth_env",
        None,
        VARIABLE,
        "The variable that holds user:password for the proxy",
    ),
)

MODEL: Final[tuple[Setting, ...]] = (
    Setting("name", "name", None, MODEL_NAME, "What callers ask for; *: any model; required"),
    Setting(
        "upstream_model",
        "upstream_model",
        None,
        MODEL_NAME,
        "What is sent; the same name if not set",
    ),
    Setting("rpm", "rpm", "off", off(COUNT), "Requests a minute of the whole instance"),
    Setting("tpm", "tpm", "off", off(COUNT), "Tokens a minute of the whole instance"),
    Setting(
        "max_output_tokens",
        "max_output_tokens",
        None,
        whole(1, 1_000_000),
        "Ceiling on output tokens; FREEAPI_MAX_OUTPUT_TOKENS if that is smaller or this isn't set",
    ),
    Setting(
        "output_field",
        "output_field",
        None,
        choice(*get_args(OutputField)),
        "What the upstream enforces: max_completion_tokens at api.openai.com, else max_tokens",
    ),
    Setting(
        "upstreams",
        "upstreams",
        None,
        several(None, "a list of names of upstreams"),
        "Who serves it; all if not set. local: the embedded model, after all others",
    ),
    Setting(
        "endpoints",
        "endpoints",
        None,
        several(_ENDPOINTS, f"a list of some of {', '.join(_ENDPOINTS)}"),
        "Where it may be asked for; chat and completions if not set",
    ),
    Setting(
        "image_tokens_max",
        "image_tokens_max",
        "0",
        whole(0, 1_000_000),
        "Above 0: images by data URL are let through, each reserved at this many tokens",
    ),
    Setting(
        "input_usd_per_mtok",
        "input_nanousd_per_mtok",
        None,
        USD,
        "Price of a million prompt tokens",
    ),
    Setting(
        "output_usd_per_mtok",
        "output_nanousd_per_mtok",
        None,
        USD,
        "Price of a million output tokens",
    ),
    Setting(
        "unit_usd",
        "unit_nanousd",
        None,
        USD,
        "The most that one image, one speech or one audio file may cost",
    ),
)

POLICY: Final[tuple[Setting, ...]] = (
    Setting("n_max", "n_max", "1", whole(1, 128), "Most choices that one request may ask for"),
    Setting(
        "when_exhausted",
        "when_exhausted",
        "refuse",
        choice("refuse", "local"),
        "With the budget spent: refuse, or let the embedded model go on",
    ),
    Setting(
        "unknown_fields",
        "unknown_fields",
        "drop",
        choice("drop", "refuse"),
        "What happens to fields of a request that nobody here knows",
    ),
)

PAGE: Final[tuple[Setting, ...]] = (
    Setting("title", "title", "chatgpt-freeapi", LINE, "What the instance's page is called"),
    Setting("contact", "contact", None, CONTACT, "Whom visitors may write to: mail, or a page"),
    Setting(
        "sponsor_text",
        "sponsor_text",
        None,
        LINE,
        'Who pays; shown on the page, behind "Paid for by"',
    ),
    Setting("sponsor_url", "sponsor_url", None, WEB_PAGE, "Where that text leads to"),
    Setting(
        "sponsor_image",
        "sponsor_image",
        None,
        PATH,
        "A picture beside that text: PNG, JPEG, GIF, WebP or SVG, at most 100 kB",
    ),
)

TIMEOUTS: Final[tuple[Setting, ...]] = (
    Setting("connect_s", "connect_s", "5", _TIMEOUT, "DNS, TCP and TLS"),
    Setting("first_byte_s", "first_byte_s", "120", _TIMEOUT, "From the request to the first byte"),
    Setting("idle_s", "idle_s", "60", _TIMEOUT, "Between two reads of a stream"),
    Setting("total_s", "total_s", "600", _TIMEOUT, "The whole request"),
)
