"""What the page says of an instance, from its configuration: the rare ones above all."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape

import msgspec
import pytest

from freeapi.pages.site_facts import SiteFacts, Sponsor, image_type
from freeapi.policy.models import Model
from tests.configs import KEY, read
from tests.pages.site_pages import page

KEYED = {"OPENAI_API_KEYS": KEY}
#: A name that is awkward in HTML, in a shell, in Python and in JavaScript; all of it is allowed.
AWKWARD = """it's"<b>&\\$(id)`x`"""


def facts(environ: dict[str, str] | None = None, toml: str | None = None) -> SiteFacts:
    """Those of a configuration."""
    return SiteFacts.of(read(KEYED if environ is None else environ, toml))


def model(name: str, **fields: object) -> str:
    """A table of freeapi.toml."""
    rows = {"name": name, "upstream_model": "gpt-4o-mini", **fields}
    return "[[model]]\n" + "".join(f"{key} = {json.dumps(row)}\n" for key, row in rows.items())


def code(shown: str, language: str) -> str:
    """The text of a sample."""
    found = re.search(rf'<code id="sample-{language}-code">(.*?)</code>', shown, re.S)
    assert found is not None
    return unescape(re.sub("<[^>]*>", "", found[1]))


def test_limits_are_shown() -> None:
    """Those of models and callers, in figures that people read."""
    shown = page(facts())
    row = shown.partition("<span data-t>gpt-3.5-turbo-16k<")[2].partition("</tr>")[0]
    assert re.findall(r"<td data-t>(.*?)</td>", row) == ["3,500", "180,000", "1,024"]
    assert re.findall(r"<strong>([$\d.,]+(?: MiB)?)</strong>", shown) == [
        "20", "40,000", "1,000", "8", "$0.25", "1 MiB",
    ]  # fmt: skip
    assert "<small>/chat/<wbr>completions /completions</small>" in shown


def test_what_is_off_is_said_to_be() -> None:
    """No limit is a word, no cap is said, and a share of no cap isn't shown."""
    off = dict.fromkeys(
        ["FREEAPI_CALLER_RPM", "FREEAPI_CALLER_TPM", "FREEAPI_CALLER_RPD", "FREEAPI_DAILY_USD"],
        "off",
    )
    shown = page(facts({**KEYED, **off}, model("any")))
    assert shown.count("<strong>no limit</strong>") == 3
    assert shown.count("<td data-t>no limit</td>") == 2
    assert "Spending has no cap here." in shown
    assert "within a fixed budget" not in shown
    assert re.search(r"<li data-t hidden><strong>\$0.00", shown)


@pytest.mark.parametrize(
    ("environ", "toml", "words"),
    [
        (KEYED, None, "429 budget_exhausted"),
        (KEYED, '[policy]\nwhen_exhausted = "local"\n', "x-freeapi-served-by: local"),
        (KEYED | {"FREEAPI_DAILY_USD": "off"}, None, "Spending has no cap here."),
        (KEYED | {"FREEAPI_DAILY_USD": "off", "FREEAPI_MONTHLY_USD": "9"}, None, "429 budget_"),
        ({}, None, "Nothing here costs money"),
        (
            KEYED,
            '[[upstream]]\nname = "lab"\nbase_url = "http://127.0.0.1:1/v1"\nfree = true\n'
            + '[[model]]\nname = "llama"\n',
            "Nothing here costs money",
        ),
    ],
)
def test_money_is_told_as_it_is(environ: dict[str, str], toml: str | None, words: str) -> None:
    """What happens when the budget is spent, or that there is none to spend."""
    sentences = {"429 budget_", "x-freeapi-served-by", "no cap here", "Nothing here costs"}
    shown = page(facts(environ, toml))
    assert words in shown
    assert sum(sentence in shown for sentence in sentences) == 1


def test_demo_model_is_shown_only_where_it_is() -> None:
    """Without keys the demo is named, and that nothing leaves the machine; else neither."""
    demo, paid = page(facts({})), page(facts())
    assert '<p class="demo" data-t >' in demo
    assert '<p class="demo" data-t hidden>' in paid
    assert "Nothing leaves this machine" in demo
    assert "Nothing leaves this machine" not in paid
    assert '"isFree":true' in demo
    assert '"isFree":false' in paid


def test_tokens_are_asked_for_where_they_are_needed() -> None:
    """The field for one, the words, and the samples."""
    open_to_all = page(facts())
    config = read(KEYED | {"FREEAPI_ACCESS_TOKENS_FILE": "x"}, read_file=lambda path: "a" * 40)
    closed = page(SiteFacts.of(config))
    assert "<label hidden>" in open_to_all
    assert "<label hidden>" not in closed
    assert "Without one, calls are refused" in closed
    assert "Without one, calls are refused" not in open_to_all
    assert "Authorization: Bearer YOUR-TOKEN" in code(closed, "curl")
    assert "Authorization" not in code(open_to_all, "curl")


def test_awkward_names_are_quoted() -> None:
    """A name is text in the page, and one argument or one string in what visitors copy."""
    rows = (msgspec.structs.replace(read().models[0], name=AWKWARD),)
    shown = page(msgspec.structs.replace(facts(), models=rows, title="<i>T</i>"))
    assert "<b>" not in shown
    assert "<i>" not in shown
    arguments = shlex.split(code(shown, "curl").replace("\\\n", " "))
    assert json.loads(arguments[arguments.index("-d") + 1])["model"] == AWKWARD
    for language in ("python", "node"):
        assert json.dumps(AWKWARD) in code(shown, language)


def test_any_model_can_be_typed() -> None:
    """With ``*`` on the list the playground has a field with suggestions, and the table a word."""
    shown = page(facts({}, model("gpt-4o-mini") + model("*")))
    assert '<input id="model" list="names" value="gpt-4o-mini"' in shown
    assert '<datalist id="names"><option value="gpt-4o-mini">' in shown
    assert "any other name" in shown
    assert '<option value="*">' not in shown


def test_only_any_model() -> None:
    """With nothing but ``*`` the samples have a word to put a name in place of."""
    shown = page(facts({}, model("*")))
    assert '<input id="model" list="names" value=""' in shown
    assert 'model="MODEL"' in code(shown, "python")


def test_instance_without_chat_has_no_playground() -> None:
    """It says so, and the sample is one that works."""
    rows = [msgspec.structs.replace(read().models[0], endpoints=("embeddings",))]
    shown = page(msgspec.structs.replace(facts(), models=tuple[Model, ...](rows)))
    assert '<form id="chat" hidden>' in shown
    assert "<p data-t >This instance serves no chat model" in shown
    assert code(shown, "curl").endswith("/v1/models")


@pytest.mark.parametrize(
    ("sponsor", "shown"),
    [
        (Sponsor("A & B"), "Paid for by</span> A &amp; B</p>"),
        (Sponsor("A", "https://a.example/?b&c"), 'href="https://a.example/?b&amp;c"'),
        (Sponsor("A", "", b"GIF89a"), 'Paid for by</span> <img src="sponsor" alt="A"></p>'),
        (Sponsor("A", "https://a.example", b"GIF89a"), 'sponsored"><img src="sponsor" alt="A">'),
    ],
)
def test_sponsor_is_shown(sponsor: Sponsor, shown: str) -> None:
    """Words or a picture, linked where there is a link, and nothing where nobody is named."""
    assert shown in page(msgspec.structs.replace(facts(), sponsor=sponsor))
    assert "Paid for by" not in page(facts())


@pytest.mark.parametrize(
    ("contact", "href"),
    [
        ("me@lab.example", "mailto:me@lab.example"),
        ("https://lab.example/@me", "https://lab.example/@me"),
        ('"<', "&quot;&lt;"),
    ],
)
def test_contact_is_linked(contact: str, href: str) -> None:
    """An address of mail or of a page; without one there is no link."""
    assert f'<a href="{href}"' in page(msgspec.structs.replace(facts(), contact=contact))
    assert "Contact" not in page(facts())


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF1234WEBPVP8", "image/webp"),
        (b"RIFF1234WAVE", None),
        (b"<?xml version='1.0'?><svg/>", "image/svg+xml"),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_pictures_are_known_by_their_bytes(data: bytes, kind: str | None) -> None:
    """The media type is that of the content; what no browser shows has none."""
    assert image_type(data) == kind


def test_no_secret_is_a_fact() -> None:
    """Neither keys nor names of upstreams are in the page, in either language."""
    toml = '[[upstream]]\nname = "donor-anna"\nkeys_env = "OPENAI_API_KEYS"\n'
    for language in ("en", "zh"):
        shown = page(facts(KEYED, toml), language)
        assert "donor-anna" not in shown
        assert "api.openai.com" not in shown
        assert KEY not in shown
