"""Which fields pass, which are dropped or refused, and how that is told."""

from __future__ import annotations

import pytest
from msgspec import Raw

from freeapi.errors import InvalidValue, UnsupportedParameter
from freeapi.policy.fields import (
    FIELDS_MAX,
    NAMED_MAX,
    SHOWN_NAME_MAX,
    Changes,
    Fields,
    Rule,
    apply,
    kept,
)

RULES = {
    "stays": Rule("pass"),
    "seen": Rule("check"),
    "goes": Rule("drop", "private"),
    "never": Rule("refuse", "it costs too much"),
}
ONE = Raw(b"1")


def test_known_fields_stay_and_others_go() -> None:
    """Fields to pass or to check stay untouched; the dropped are named, the unknown counted."""
    fields: Fields = {"stays": ONE, "goes": ONE, "Stays": ONE, "seen": ONE, "odd": ONE}
    changes = Changes(refuses_unknown=False)
    apply(RULES, fields, changes, "")
    assert fields == {"stays": ONE, "seen": ONE}
    assert changes.header() == b"goes=dropped, +2"


def test_a_refused_field_says_where_and_why() -> None:
    """The error has the path to the field and its rule's reason."""
    with pytest.raises(UnsupportedParameter) as caught:
        apply(RULES, {"never": ONE}, Changes(refuses_unknown=False), "messages[3].")
    assert caught.value.param == "messages[3].never"
    assert caught.value.message.endswith("it costs too much.")


@pytest.mark.parametrize("refuses_unknown", [True, False])
def test_a_null_is_no_field(refuses_unknown: bool) -> None:
    """A null of a dropped, refused or unknown field goes without a word."""
    null = Raw(b"null")
    fields: Fields = {"goes": null, "never": null, "odd": null, "stays": null}
    changes = Changes(refuses_unknown)
    apply(RULES, fields, changes, "")
    assert fields == {"stays": null}
    assert changes.header() == b""


def test_an_unknown_field_is_refused_by_name_where_told_to() -> None:
    """The name is said back if it is printable ASCII and short."""
    name = "x" * SHOWN_NAME_MAX
    with pytest.raises(UnsupportedParameter) as caught:
        apply(RULES, {name: ONE}, Changes(refuses_unknown=True), "tools[0].")
    assert caught.value.param == f"tools[0].{name}"


@pytest.mark.parametrize("name", ["x" * 65, "né", "a\nb", "a\x7f"])
@pytest.mark.parametrize(("path", "param"), [("", "body"), ("tools[0].", "tools[0]")])
def test_an_unknown_name_that_cannot_be_shown_is_not(name: str, path: str, param: str) -> None:
    """A long or unprintable name isn't repeated; the error points at the object that has it."""
    with pytest.raises(UnsupportedParameter) as caught:
        apply(RULES, {name: ONE}, Changes(refuses_unknown=True), path)
    assert caught.value.param == param
    assert name not in caught.value.message


@pytest.mark.parametrize(("path", "param"), [("", "body"), ("tools[0].", "tools[0]")])
def test_the_number_of_fields_is_bounded(path: str, param: str) -> None:
    """An object of countless names is refused before they are gone through."""
    fields: Fields = {f"x{number}": ONE for number in range(FIELDS_MAX)}
    apply(RULES, dict(fields), Changes(refuses_unknown=False), path)
    with pytest.raises(InvalidValue) as caught:
        apply(RULES, {**fields, "stays": ONE}, Changes(refuses_unknown=False), path)
    assert caught.value.param == param


def test_nothing_done_is_nothing_said() -> None:
    """Without a change the header's value is empty."""
    assert Changes(refuses_unknown=False).header() == b""


def test_at_most_eight_changes_are_named() -> None:
    """Beyond eight the rest is a number, in which the unknown fields are counted too."""
    changes = Changes(refuses_unknown=False)
    for number in range(NAMED_MAX):
        changes.note(f"f{number}=dropped")
    named = ", ".join(f"f{number}=dropped" for number in range(NAMED_MAX)).encode()
    assert changes.header() == named
    changes.note("f8=dropped")
    changes.note("f9=dropped")
    changes.drop_unknown("", "odd")
    assert changes.header() == named + b", +3"


def test_unknown_fields_alone_are_a_number() -> None:
    """Where only unknown fields were dropped, the header has their count and no name."""
    changes = Changes(refuses_unknown=False)
    apply({}, {"odd": ONE, "odder": ONE}, changes, "")
    assert changes.header() == b"+2"


def test_the_same_change_is_named_once() -> None:
    """A change in many places (parts of messages) doesn't crowd out the others."""
    changes = Changes(refuses_unknown=False)
    changes.note("a=dropped")
    changes.note("b=dropped")
    changes.note("a=dropped")
    assert changes.header() == b"a=dropped, b=dropped"


def test_changes_of_two_requests_are_apart() -> None:
    """What was done to one request is never told to the next."""
    Changes(refuses_unknown=False).note("a=dropped")
    assert Changes(refuses_unknown=False).header() == b""


def test_kept_are_the_fields_that_apply_leaves() -> None:
    """The shortcut (all names are kept) and the thorough way agree."""
    fields: Fields = dict.fromkeys(RULES.keys() - {"never"}, ONE)
    apply(RULES, fields, Changes(refuses_unknown=False), "")
    assert fields.keys() == kept(RULES) == {"stays", "seen"}
