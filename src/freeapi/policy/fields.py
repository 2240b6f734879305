"""What becomes of a request's fields by their names, and what is told to the caller.

``apply`` takes out of an object what its table doesn't let through; ``Changes`` remembers it for
``x-freeapi-adjusted``. The tables themselves, one per kind of object, are in ``tables``.

What this is not: it looks at names only. Fields whose *value* decides are marked ``check`` and are
the affair of the endpoint's module (``chat``, ``responses``, ...).

Invariants:
- A field that isn't in a table never passes; names are matched exactly, so an upstream with laxer
  names (``Content`` for ``content``) finds nothing that wasn't looked at.
- A null means the same as no field: it is never named, counted or refused.
- Of an unknown field nothing is said but how many there were, unless it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from msgspec import Raw

from freeapi.errors import InvalidValue, UnsupportedParameter

#: Adjustments named in ``x-freeapi-adjusted``; the rest are a number. Source: DESIGN section 2.
NAMED_MAX: Final = 8
#: Characters of an unknown field's name that are said back; OpenAI's longest name has 22.
SHOWN_NAME_MAX: Final = 64

#: Names in an object that needs a second look, or else a body of 1 MB could make us go through
#: 100,000 of them; OpenAI's largest object has about 40.
FIELDS_MAX: Final = 100

#: An object of the request: name to Raw as it came, or to what is sent in its place.
Fields = dict[str, Any]

_NULL: Final = Raw(b"null")


class Rule(NamedTuple):
    """``check``: the endpoint looks at the value. ``why`` is said to the caller when refused."""

    action: Literal["pass", "check", "drop", "refuse"]
    why: str = ""


class Changes:
    """What was done to the request: known names in order, and a count of unknown ones."""

    __slots__ = ("named", "refuses_unknown", "unknown_count")

    def __init__(self, refuses_unknown: bool) -> None:
        self.refuses_unknown = refuses_unknown
        #: The keys are a set that keeps its order.
        self.named: dict[str, None] = {}
        self.unknown_count = 0

    def note(self, change: str) -> None:
        """Name a change; ``change`` holds nothing of the caller's but known field names."""
        self.named[change] = None

    def drop_unknown(self, path: str, name: str) -> None:
        """Count a field that is in no table. Raises UnsupportedParameter where told to."""
        if not self.refuses_unknown:
            self.unknown_count += 1
            return
        if len(name) <= SHOWN_NAME_MAX and name.isascii() and name.isprintable():
            raise UnsupportedParameter(param=path + name, problem="there is no such field")
        problem = "it has an unknown field, whose name cannot be shown"
        raise UnsupportedParameter(param=_owner(path), problem=problem)

    def header(self) -> bytes:
        """At most NAMED_MAX names, then how many more there were; empty if nothing was done."""
        if not self.named and not self.unknown_count:
            return b""
        named = list(self.named)
        more = len(named[NAMED_MAX:]) + self.unknown_count
        shown = [*named[:NAMED_MAX], f"+{more}"] if more else named
        return ", ".join(shown).encode("ascii")


def _owner(path: str) -> str:
    """The object that the path leads into, as errors name it."""
    return path.rstrip(".") or "body"


def kept(rules: Mapping[str, Rule]) -> frozenset[str]:
    """The names that ``apply`` leaves in place."""
    return frozenset(name for name, rule in rules.items() if rule.action in {"pass", "check"})


def has_only(fields: Fields, names: frozenset[str]) -> bool:
    """Whether no other field is there. By a loop, since issuperset makes a set of them first."""
    return all(name in names for name in fields)


def apply(rules: Mapping[str, Rule], fields: Fields, changes: Changes, path: str) -> None:
    """Take out what may not pass; ``path`` leads to this object in messages, with its dot.

    Raises UnsupportedParameter, and InvalidValue where there are more than FIELDS_MAX.
    O(fields); callers skip it where all names are ``kept``.
    """
    if len(fields) > FIELDS_MAX:
        problem = f"there can be at most {FIELDS_MAX} fields"
        raise InvalidValue(param=_owner(path), problem=problem)
    for name in list(fields):
        rule = rules.get(name)
        if rule is not None and rule.action in {"pass", "check"}:
            continue
        if fields.pop(name) == _NULL:
            continue
        if rule is None:
            changes.drop_unknown(path, name)
        elif rule.action == "drop":
            changes.note(f"{name}=dropped")
        else:
            raise UnsupportedParameter(param=path + name, problem=rule.why)
