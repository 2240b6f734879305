"""The command line: arguments in, an exit code out.

Reads what lies outside (environment, ``.env``, ``freeapi.toml``), hands it to ``config.load`` as
texts, and starts the command.

Exit codes: 0 done, 1 the command failed, 2 the arguments or the configuration can't be used.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from dotenv import dotenv_values

from freeapi import __version__
from freeapi.config import Config, ConfigError, config_path, load
from freeapi.hardening import HardeningRefused, harden
from freeapi.journal import Journal
from freeapi.live_line import open_live_line
from freeapi.pages.site_facts import IMAGE_BYTES_MAX, image_type
from freeapi.pages.status import Money
from freeapi.policy.budget import NANO, Budget
from freeapi.prices import priced
from freeapi.reading import Problem, quote
from freeapi.reload import Sources
from freeapi.serve import run
from freeapi.showing import render
from freeapi.state.ledger import LedgerError, read_grants
from freeapi.upstreams import caps
from freeapi.workers.link import hear_orders
from freeapi.workers.worker import Post

DEFAULT_FILE = "freeapi.toml"
#: More than the largest machines have processors.
_WORKERS_MAX = 512


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``freeapi`` with ``argv`` (default: the process's)."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "serve" and arguments.worker is not None:
        end = socket.socket(fileno=arguments.worker)
        arguments.post = Post(end, hear_orders(end))
    if arguments.command == "version":
        print(f"freeapi {__version__}")
        return 0
    sources = Sources()
    read = functools.partial(_read_config, arguments, sources)
    if arguments.command == "doctor":
        doctor = _command("commands.doctor", "run")
        return doctor(
            read, lambda: sources.paths, as_json=arguments.json, offline=arguments.offline
        )
    try:
        if arguments.command == "serve":
            harden()
        config = read()
    except HardeningRefused as error:
        advice = "A sandbox around it (seccomp) forbids that: let it call prctl."
        print(f"freeapi can't start: {error}. {advice}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.command == "config":
        print(render(config) + _spending(config))
        return 0
    if arguments.command == "audit":
        settings = {**dotenv_values(".env", interpolate=False), **os.environ}
        given = {name: text for name, text in settings.items() if text}
        return _command("commands.audit", "run")(config, given, as_json=arguments.json)
    line = open_live_line(sys.stderr, os.environ)
    if line is not None:
        sys.stderr = line.stream  # whatever is printed stands above it
    journal = Journal(sys.stderr, config.log, time.time)
    journal.capture_libraries()
    journal.capture_exceptions()
    if arguments.workers > 1:
        flags = _flags(arguments)
        supervise = _command("workers.supervisor", "supervise")
        return supervise(config, journal, sources, read, flags, arguments.workers, line)
    return run(config, journal, sources, read, line=line, post=arguments.post)


def _command(module: str, name: str) -> Callable[..., int]:
    """What a gateway in one process needs nothing of: a third of all that there is to import."""
    command: Callable[..., int] = getattr(importlib.import_module(f"freeapi.{module}"), name)
    return command


def _spending(config: Config) -> str:
    """What is left of the caps, as far as the ledger on disk says."""
    limits = caps(config)
    if limits is None or config.data_dir is None:
        return ""
    now_s = time.time()
    try:
        grants = read_grants(Path(config.data_dir), now_s)
    except LedgerError as error:
        return f"warning: {error}\n"
    status = Budget(limits, grants, now_s).status(now_s)
    money = Money.of(status)
    lines = [
        f"budget: ${left / NANO:.6f} left today at {name}\n"
        for name, left in status.upstream_left_nanousd.items()
    ]
    if money.left_today_usd is not None:
        lines.append(f"budget: ${money.left_today_usd:.6f} left until {money.resets_at}\n")
    return "".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="freeapi", description="Share your OpenAI keys with anyone, within your budget."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="answer callers until told to stop")
    serve.add_argument("--host", help="address to listen on (HOST)")
    serve.add_argument("--port", help="port to listen on, 0 for any free one (PORT)")
    serve.add_argument(
        "--workers", type=_count, default=1, help="processes that share the port (default: 1)"
    )
    serve.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    serve.set_defaults(post=None)
    show = commands.add_parser("config", help="show the effective configuration, without secrets")
    check = commands.add_parser("audit", help="prove on this machine that callers stay private")
    look = commands.add_parser("doctor", help="check this instance, and say what to do")
    look.add_argument("--offline", action="store_true", help="ask no upstream and no shared state")
    for command in (check, look):
        command.add_argument("--json", action="store_true", help="print the result for machines")
    for command in (serve, show, check, look):
        command.add_argument("--config", help="path of freeapi.toml (FREEAPI_CONFIG)")
    commands.add_parser("version", help="show the version")
    return parser


def _read_config(arguments: argparse.Namespace, sources: Sources) -> Config:
    """Raises ConfigError; nothing else that an operator can cause. At each reload, in a thread."""
    sources.forget()
    flags = _flags(arguments)
    dotenv = _dotenv(sources)
    path = flags.get("FREEAPI_CONFIG") or config_path(os.environ, dotenv)
    config = load(
        os.environ,
        _toml(path, sources),
        path or DEFAULT_FILE,
        read_file=sources.read,
        dotenv=dotenv,
        flags=flags,
    )
    if caps(config) is not None:  # only money that is counted needs prices, and a place for sums
        config = priced(config)
    page = msgspec.structs.replace(config.page, image=_image(config.page.sponsor_image, sources))
    data_dir = config.data_dir or _state_dir()
    if data_dir is None and caps(config) is not None:
        found = "nothing, and this user has no home directory"
        raise ConfigError([Problem("FREEAPI_DATA_DIR", found, "a folder for the spend ledger")])
    return msgspec.structs.replace(config, data_dir=data_dir, page=page)


def _image(path: str | None, sources: Sources) -> bytes:
    """The sponsor's picture. Raises ConfigError."""
    if path is None:
        return b""
    try:
        image = sources.read_bytes(path)
    except OSError:
        image = b""
    if image_type(image) is None or len(image) > IMAGE_BYTES_MAX:
        wanted = f"a PNG, JPEG, GIF, WebP or SVG file of at most {IMAGE_BYTES_MAX} bytes"
        raise ConfigError([Problem("[page]: sponsor_image", "no such picture", wanted)])
    return image


def _flags(arguments: argparse.Namespace) -> dict[str, str]:
    """Settings of the command line, or those that a worker has from its supervisor."""
    post = getattr(arguments, "post", None)
    if post is not None:
        return dict(post.orders.flags)
    given = {"HOST": "host", "PORT": "port", "FREEAPI_CONFIG": "config"}
    return {name: value for name, key in given.items() if (value := getattr(arguments, key, None))}


def _count(text: str) -> int:
    """Raises ArgumentTypeError, with what is allowed."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _WORKERS_MAX):
        raise argparse.ArgumentTypeError(
            f"found {text!r}; allowed: a whole number from 1 to {_WORKERS_MAX}"
        )
    return int(text)


def _state_dir() -> str | None:
    """The user's state directory; None for a user without a home, as containers have them.

    Source: XDG Base Directory Specification.
    """
    base = os.environ.get("XDG_STATE_HOME")
    try:
        return str(Path(base or Path.home() / ".local" / "state") / "freeapi")
    except RuntimeError:
        return None


def _dotenv(sources: Sources) -> dict[str, str | None]:
    try:
        text = sources.read(".env")
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [Problem(".env", "a file that can't be read", "text in UTF-8")]
        ) from error
    return dotenv_values(stream=io.StringIO(text), interpolate=False)


def _toml(path: str | None, sources: Sources) -> str | None:
    """The file's text; None where none is asked for and there is none."""
    name = path or DEFAULT_FILE
    try:
        return sources.read(name)
    except (OSError, UnicodeDecodeError) as error:
        if path is None and isinstance(error, FileNotFoundError):
            return None
        found = "no file" if isinstance(error, FileNotFoundError) else "a file that can't be read"
        place = name if name in quote(name) else "FREEAPI_CONFIG"  # it may be a key by mistake
        raise ConfigError([Problem(place, found, "a text file in UTF-8")]) from error
