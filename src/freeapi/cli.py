"""The command line: arguments in, an exit code out.

Reads what lies outside (environment, ``.env``, ``freeapi.toml``), hands it to ``config.load`` as
texts, and starts the command.

Exit codes: 0 done, 1 the command failed, 2 the arguments or the configuration can't be used.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dotenv import dotenv_values

from freeapi import __version__
from freeapi.config import Config, ConfigError, config_path, load
from freeapi.gateway import run
from freeapi.journal import Journal
from freeapi.reading import Problem
from freeapi.showing import render

DEFAULT_FILE = "freeapi.toml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``freeapi`` with ``argv`` (default: the process's)."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "version":
        print(f"freeapi {__version__}")
        return 0
    try:
        config = _read_config(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.command == "config":
        print(render(config))
        return 0
    return _serve(config)


def _serve(config: Config) -> int:
    journal = Journal(sys.stderr, config.log, time.time)
    journal.capture_libraries()
    journal.capture_exceptions()
    return run(config, journal)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="freeapi", description="Share your OpenAI keys with anyone, within your budget."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="answer callers until told to stop")
    serve.add_argument("--host", help="address to listen on (HOST)")
    serve.add_argument("--port", help="port to listen on, 0 for any free one (PORT)")
    show = commands.add_parser("config", help="show the effective configuration, without secrets")
    for command in (serve, show):
        command.add_argument("--config", help="path of freeapi.toml (FREEAPI_CONFIG)")
    commands.add_parser("version", help="show the version")
    return parser


def _read_config(arguments: argparse.Namespace) -> Config:
    """Raises ConfigError; nothing else that an operator can cause."""
    given = {"HOST": "host", "PORT": "port", "FREEAPI_CONFIG": "config"}
    flags = {name: value for name, key in given.items() if (value := getattr(arguments, key, None))}
    dotenv = dotenv_values(".env", interpolate=False)
    path = flags.get("FREEAPI_CONFIG") or config_path(os.environ, dotenv)
    return load(
        os.environ,
        _toml(path),
        path or DEFAULT_FILE,
        read_file=_read,
        dotenv=dotenv,
        flags=flags,
    )


def _toml(path: str | None) -> str | None:
    """The file's text; None where none is asked for and there is none."""
    if path is None and not Path(DEFAULT_FILE).exists():
        return None
    name = path or DEFAULT_FILE
    try:
        return _read(name)
    except (OSError, UnicodeDecodeError) as error:
        found = "no file" if isinstance(error, FileNotFoundError) else "a file that can't be read"
        raise ConfigError([Problem(name, found, "a text file in UTF-8")]) from error


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")
