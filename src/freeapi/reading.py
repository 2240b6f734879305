"""Reading settings: values by the rows of a table, and every problem noted with its place.

A ``Reader`` goes through the environment's variables and the tables of ``freeapi.toml`` with the
rows of ``settings``. What is wrong is noted, and its default stands in so that reading goes on.

What this is not: it opens no file itself (the edge passes ``read_file``), and it doesn't know what
the values are for; ``config`` joins them.

Invariants:
- Nothing stops at the first problem.
- No problem quotes a value of a secret kind, nor one that looks like a key or holds a password.
- An empty variable counts as not set, in every layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

import msgspec

from freeapi.settings import ENVIRONMENT, Setting
from freeapi.spelling import KEYS, Kind, Secret, Unfit

#: Characters of a wrong value that are shown; more would bury the message.
SHOWN_CHARS_MAX: Final = 60
#: The same, of the items of a wrong list; there are nine endpoints.
SHOWN_ITEMS_MAX: Final = 9
#: A key of OpenAI and its like, a user name and password, a query: in whatever setting they stand.
_SENSITIVE: Final = re.compile(r"\bsk[-_]|://.*@|\?")
#: What Kubernetes puts into every pod for a service called ``freeapi`` or ``freeapi-…``, which
#: nobody wrote and nobody can mend. Source: Kubernetes, "Service", environment variables.
_SERVICE_LINK: Final = re.compile(
    r"FREEAPI_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+)=.*|FREEAPI_(\w+_)?PORT=\w+://.*"
)


class Problem(msgspec.Struct, frozen=True):
    """One thing to mend: where it stands, what was found there, what would do."""

    name: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.name}: found {self.found}; allowed: {self.allowed}"


class Origin(msgspec.Struct, frozen=True):
    """One setting as it stands, safe to show, and where it comes from."""

    section: str
    name: str
    value: str | None
    source: str


class Reader:
    """Collects values, problems, warnings and origins; used once, by one ``load``."""

    def __init__(
        self,
        layers: Mapping[str, Mapping[str, str | None]],
        toml_name: str,
        read_file: Callable[[str], str],
    ) -> None:
        """``layers`` by their names, the one that wins first."""
        self.layers = layers
        self.toml_name = toml_name
        self.read_file = read_file
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.origins: list[Origin] = []
        self._known: set[str] = set()

    def problem(self, place: str, found: str, allowed: str) -> None:
        """Note one."""
        self.problems.append(Problem(place, found, allowed))

    # --- Variables ---

    def variable(self, name: str) -> tuple[str, str] | None:
        """The variable's text and the layer that it is from, or None if it isn't set."""
        self._known.add(name)
        for source, layer in self.layers.items():
            text = (layer.get(name) or "").strip()
            if text:
                return text, source
        return None

    def environment(self) -> dict[str, Any]:
        """The value of every row of ENVIRONMENT, by field."""
        values = {}
        for row in ENVIRONMENT:
            text, source = self.variable(row.name) or (row.default, "default")
            plain = source in ("default", "environment")
            value = self.fit(row, text, row.name if plain else f"{row.name} ({source})")
            values[row.field] = value
            self._note("environment", row, value, text, source)
        return values

    def refuse_unknown_variables(self) -> None:
        """A misspelt FREEAPI_ name would leave a limit where it was, unnoticed. Call it last."""
        found = {name: text for layer in self.layers.values() for name, text in layer.items()}
        for name, text in sorted(found.items()):
            if not name.startswith("FREEAPI_") or name in self._known or not text:
                continue
            if not _SERVICE_LINK.fullmatch(f"{name}={text}"):
                known = {one.removeprefix("FREEAPI_"): one for one in self._known}
                self._unknown(name, name.removeprefix("FREEAPI_"), known)

    # --- The file ---

    def document(self, text: str | None) -> dict[str, Any]:
        """The file's top level; empty without a file, or where it isn't TOML."""
        if text is None:
            return {}
        try:
            document: dict[str, Any] = msgspec.toml.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            # tomllib names the line and the kind of mistake; it doesn't quote values.
            self.problem(self.toml_name, f"{error}", "TOML")
            return {}
        names = {name: name for name in ("upstream", "model", "policy", "page", "timeouts")}
        for name in sorted(document.keys() - names.keys()):
            self._unknown(f"{self.toml_name}: {name}", name, names)
        return document

    def section(
        self, document: Mapping[str, Any], name: str, rows: Sequence[Setting]
    ) -> dict[str, Any]:
        """The values of ``[name]``, by field."""
        place = f"{self.toml_name}: [{name}]"
        table = document.get(name, {})
        if not isinstance(table, dict):
            self.problem(place, "something else", f"a table, [{name}]")
            table = {}
        values = self.table(table, rows, place)
        for row in rows:
            text = str(table.get(row.name, row.default))
            source = self.toml_name if row.name in table else "default"
            self._note(name, row, values[row.field], text, source)
        return values

    def entries(self, document: Mapping[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
        """The tables of ``[[name]]``, each with its place in words."""
        place = f"{self.toml_name}: [[{name}]]"
        tables = document.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problem(place, "something else", f"one or more tables, [[{name}]]")
            return []
        return [
            (f"{place} {number} {quote(table.get('name', ''))}", table)
            for number, table in enumerate(tables, 1)
        ]

    def table(
        self, table: Mapping[str, Any], rows: Sequence[Setting], place: str
    ) -> dict[str, Any]:
        """The value of each row, by field; a key that no row has is a problem."""
        names = {row.name: row.name for row in rows}
        for name in sorted(table.keys() - names.keys()):
            self._unknown(f"{place}: {name}", name, names)
        return {
            row.field: self.fit(row, table.get(row.name, row.default), f"{place}: {row.name}")
            for row in rows
        }

    def require_own_name(
        self, place: str, table: Mapping[str, Any], name: str | None, taken: Iterable[str]
    ) -> None:
        """Refuse an entry without a name, or with another one's."""
        if "name" not in table:
            self.problem(f"{place}: name", "nothing", "a name, which is required")
        if name is not None and name in taken:
            self.problem(f"{place}: name", f"{quote(name)} again", "a name that no other one has")

    # --- Values ---

    def fit(self, row: Setting, value: object, place: str) -> Any:
        """The parsed value; None where there is none; the default's where it doesn't fit."""
        if value is None:
            return None
        try:
            return row.kind.parse(value)
        except Unfit as unfit:
            why = f" ({unfit})" if str(unfit) else ""
            self.problem(place, quote(value, secret=row.kind.secret) + why, row.kind.allowed)
        return None if row.default is None else row.kind.parse(row.default)

    def text(self, path: str, place: str) -> str:
        """The text of a file; empty, with a problem, if it can't be read."""
        try:
            return self.read_file(path)
        except (OSError, UnicodeDecodeError) as error:
            # The path isn't repeated: it may be a key that was put into the wrong variable.
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            self.problem(place, f"a file that can't be read ({why})", "a readable text file")
            return ""

    def hidden(self, kind: Kind, text: str, place: str) -> Any:
        """The value of a text that is never shown; None, with a problem, if it doesn't fit."""
        try:
            return kind.parse(text)
        except Unfit as unfit:
            self.problem(place, f"{unfit}", kind.allowed)
            return None

    def keys(self, text: str, place: str) -> tuple[Secret, ...]:
        """The keys in a text."""
        return self.hidden(KEYS, text, place) or ()

    def keys_of_file(self, path: str, place: str) -> tuple[Secret, ...]:
        """The keys in a file, where a line that starts with # is a comment."""
        before = len(self.problems)
        lines = self.text(path, place).splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        return self.keys(text, place) if len(self.problems) == before else ()

    def _unknown(self, place: str, name: str, known: Mapping[str, str]) -> None:
        """``known``: what may have been meant, by the part of it that tells it apart."""
        near = get_close_matches(name, known, n=1)
        meant = f"did you mean {known[near[0]]}?" if near else None
        allowed = meant or f"one of {', '.join(sorted(known.values()))}"
        if _SENSITIVE.search(name):
            place = place.removesuffix(name) + "…"
        self.problem(place, "a name that nothing here has", allowed)

    def _note(
        self, section: str, row: Setting, value: object, text: str | None, source: str
    ) -> None:
        """Keep what ``freeapi config`` shows: keys by their tails, anything else as written."""
        if isinstance(value, tuple):
            text = ", ".join(map(str, value))
        elif row.kind.secret and value is not None:
            text = str(value)
        if text is not None and _SENSITIVE.search(text):
            text = str(Secret(text))
        self.origins.append(Origin(section, row.name, text, source))


def quote(value: object, *, secret: bool = False) -> str:
    """A wrong value as it may be shown to the operator, in quotes.

    >>> quote("12x"), quote("sk-abc"), quote({})
    ("'12x'", 'a value of 6 characters, not shown', 'a dict')
    >>> quote(["chat", "video"]), quote([])
    ("'chat', 'video'", 'a list')
    """
    if isinstance(value, list) and value and not secret:
        return ", ".join(quote(one) for one in value[:SHOWN_ITEMS_MAX])
    if isinstance(value, list | dict):
        return f"a {type(value).__name__}"
    text = str(value)
    if secret or _SENSITIVE.search(text):
        return f"a value of {len(text)} characters, not shown"
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…")
