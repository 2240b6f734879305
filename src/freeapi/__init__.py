"""chatgpt-freeapi: a proxy that shares an operator's OpenAI keys, within limits and in private.

This module holds the version, and sees to it that what runs is what the sources say. The package is
run (``freeapi serve``), not imported, so there is no public Python API to export. Where to start
reading: ``cli`` builds the objects, ``proxy`` is the life of one request.

Some modules may have been compiled (``scripts/compile``); then Python takes the compiled ones. If a
source has changed since, none of them is taken, as they are bound to one another: looking costs a
start a millisecond or two.

Invariant: importing ``freeapi`` imports no other module, so that the version is free to ask for.
"""

import sys
from hashlib import blake2b
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path

__version__ = "0.1.0"

_HERE = Path(__file__).parent
#: What was compiled: the sources' fingerprint, then a line with the name of each.
COMPILED = _HERE / "compiled.txt"


def fingerprint(names: list[str]) -> str:
    """Of this Python and the sources of these names. Raises OSError."""
    digest = blake2b(sys.version.encode(), digest_size=16)
    for name in names:
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest()


def _is_compiled() -> bool:
    """Whether there are compiled modules, all of them of the sources as they are."""
    try:
        known, *names = COMPILED.read_text().split()
        return known == fingerprint(names)
    except (OSError, ValueError):
        return False


def take_sources() -> None:
    """Let Python find nothing but sources in this package's folders, from now on.

    For who wants to see or change what happens inside, before anything else is imported.
    """
    for folder in (_HERE, *(entry for entry in _HERE.iterdir() if entry.is_dir())):
        finder = FileFinder(str(folder), (SourceFileLoader, SOURCE_SUFFIXES))
        sys.path_importer_cache[str(folder)] = finder


if not _is_compiled():
    take_sources()
