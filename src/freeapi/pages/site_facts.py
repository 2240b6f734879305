"""What the public page says of this instance: facts of the configuration, as escaped HTML.

What this is not: the page (``site``), its words (``static/site.*.toml``) or anything that changes
while it is shown (``status``). Keys, upstreams' names and prices aren't among the facts.

Invariant: every text that the operator wrote is escaped here, once; in samples it is quoted for the
shell, Python or JavaScript first, so that what a visitor copies does what it says.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from html import escape
from typing import Final

import msgspec

from freeapi import __version__
from freeapi.config import Config
from freeapi.policy.budget import NANO
from freeapi.policy.models import ANY_MODEL, PATHS, Model

#: Stands in the samples until the script knows where the visitor is, and for good without it.
_BASE: Final = "https://this-instance/v1"
_TITLE: Final = "chatgpt-freeapi"
_MAGIC: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"<svg": "image/svg+xml",
    b"<?xml": "image/svg+xml",
}
_MIB: Final = 1 << 20
_INNER_SLASH: Final = re.compile(r"(?<=\w)/")


class Sponsor(msgspec.Struct, frozen=True):
    """Who pays, as the operator puts it: words, a link, a picture, or all of them."""

    text: str
    #: ``https://…``; empty: no link.
    url: str = ""
    #: A file that ``image_type`` knows; empty: no picture.
    image: bytes = b""


class SiteFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration, as far as visitors are concerned; ``None`` for a limit is unlimited."""

    models: tuple[Model, ...]
    caller_rpm: int | None
    caller_tpm: int | None
    caller_rpd: int | None
    caller_concurrency: int | None
    caller_daily_nanousd: int | None
    max_body_bytes: int
    #: Only the embedded model answers.
    is_demo: bool
    #: Nothing that answers costs money.
    is_free: bool
    needs_token: bool
    has_cap: bool
    #: The embedded model goes on where the budget ends.
    has_stand_in: bool
    title: str = _TITLE
    #: An address of mail or of a page; empty: none.
    contact: str = ""
    sponsor: Sponsor | None = None

    @classmethod
    def of(cls, config: Config) -> SiteFacts:
        """Those of this configuration."""
        page = config.page
        sponsor = None
        if page.sponsor_text is not None:
            sponsor = Sponsor(page.sponsor_text, page.sponsor_url or "", page.image)
        caps = (config.daily_nanousd, config.monthly_nanousd)
        return cls(
            models=config.models,
            caller_rpm=config.caller_rpm,
            caller_tpm=config.caller_tpm,
            caller_rpd=config.caller_rpd,
            caller_concurrency=config.caller_concurrency,
            caller_daily_nanousd=config.caller_daily_nanousd,
            max_body_bytes=config.max_body_bytes,
            is_demo=config.local,
            is_free=all(upstream.free for upstream in config.upstreams),
            needs_token=config.access_tokens is not None,
            has_cap=any(cap is not None for cap in caps),
            has_stand_in=config.policy.when_exhausted == "local",
            title=page.title,
            contact=page.contact or "",
            sponsor=sponsor,
        )

    def render(self, texts: Mapping[str, str]) -> dict[str, str]:
        """All that the page's template wants to know, as HTML, in the language of ``texts``."""
        chat = [model for model in self.models if "chat" in model.endpoints]
        share = self.caller_daily_nanousd
        none = texts["unlimited"]
        return {
            "title": escape(self.title),
            "version": escape(__version__),
            "lead": texts["lead_token" if self.needs_token else "lead_open"],
            "pays": texts[self._payer()],
            "key": texts["key_token" if self.needs_token else "key_open"],
            "demo_hidden": _hidden(not self.is_demo),
            "token_hidden": _hidden(not self.needs_token),
            "chat_hidden": _hidden(not chat),
            "no_chat_hidden": _hidden(bool(chat)),
            "others_hidden": _hidden(self.is_demo),
            "share_hidden": _hidden(share is None or self.is_free),
            "samples": _samples(chat, texts["copy"], needs_token=self.needs_token),
            "model_choice": _model_choice(chat),
            "models": "\n".join(_row(model, texts) for model in self.models),
            "rpm": _number(self.caller_rpm, none),
            "tpm": _number(self.caller_tpm, none),
            "rpd": _number(self.caller_rpd, none),
            "concurrency": _number(self.caller_concurrency, none),
            "share": f"${(share or 0) / NANO:,.2f}",
            "body": _size(self.max_body_bytes),
            "told_apart": texts["caller_token" if self.needs_token else "caller_open"],
            "money": texts[self._money()],
            "privacy_sent": texts["privacy_demo" if self.is_demo else "privacy_sent"],
            "sponsor": _sponsor(self.sponsor, texts["sponsor_title"]),
            "contact": _contact(self.contact, texts["contact"]),
        }

    def _money(self) -> str:
        if self.is_free:
            return "money_free"
        if not self.has_cap:
            return "money_uncapped"
        return "money_local" if self.has_stand_in else "money_refuse"

    def _payer(self) -> str:
        if self.is_free:
            return "pays_free"
        return "pays_capped" if self.has_cap else "pays_uncapped"


#: A page should be there at once, also on a telephone.
IMAGE_BYTES_MAX: Final = 100_000


def image_type(data: bytes) -> str | None:
    """The media type of a picture that browsers show, by its first bytes; None: it isn't one.

    >>> image_type(b"<svg xmlns=''/>"), image_type(b"hello")
    ('image/svg+xml', None)
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


def _hidden(is_hidden: bool) -> str:
    return "hidden" if is_hidden else ""


def _number(value: int | None, unlimited: str) -> str:
    return unlimited if value is None else f"{value:,}"


def _size(size_bytes: int) -> str:
    """In MiB, or KiB where that is less than one."""
    if size_bytes < _MIB:
        return f"{size_bytes / 1024:.4g} KiB"
    return f"{size_bytes / _MIB:.4g} MiB"


def _row(model: Model, texts: Mapping[str, str]) -> str:
    """A row of the table of models."""
    name = texts["any_model"] if model.name == ANY_MODEL else escape(model.name)
    paths = " ".join(PATHS[endpoint] for endpoint in model.endpoints)
    paths = _INNER_SLASH.sub("/<wbr>", paths)  # where a narrow column may break them
    cells = (
        _number(model.rpm, texts["unlimited"]),
        _number(model.tpm, texts["unlimited"]),
        f"{model.max_output_tokens:,}",
    )
    columns = "".join(f"<td data-t>{cell}</td>" for cell in cells)
    return (
        f'<tr><th scope="row"><span data-t>{name}</span> <small>{paths}</small></th>{columns}</tr>'
    )


def _model_choice(chat: list[Model]) -> str:
    """A list to choose from; with ``*`` on the allow-list any name can be typed."""
    names = [escape(model.name) for model in chat if model.name != ANY_MODEL]
    options = "".join(f'<option value="{name}">{name}</option>' for name in names)
    if len(names) == len(chat):
        return f'<select id="model">{options}</select>'
    first = names[0] if names else ""
    field = f'<input id="model" list="names" value="{first}" autocomplete="off" spellcheck="false">'
    return f'{field}<datalist id="names">{options}</datalist>'


def _samples(chat: list[Model], copy: str, *, needs_token: bool) -> str:
    """One block per language; without a chat model only what can be asked of any instance."""
    if not chat:
        return _sample("curl", f"curl {_BASE}/models", copy)
    model = next((model.name for model in chat if model.name != ANY_MODEL), "MODEL")
    key = "YOUR-TOKEN" if needs_token else "sk-free-api"
    samples = {
        "curl": _curl(model, key if needs_token else None),
        "Python": _PYTHON.format(base=_BASE, key=key, model=json.dumps(model)),
        "Node": _NODE.format(base=_BASE, key=key, model=json.dumps(model)),
    }
    return "\n".join(_sample(name, code, copy) for name, code in samples.items())


def _sample(name: str, code: str, copy: str) -> str:
    place = f"sample-{name.lower()}"
    shown = escape(code).replace(_BASE, f"<span data-base>{_BASE}</span>")
    copied = f'data-copy="{place}-code" data-js hidden data-t'
    return (
        f'<div class="sample" id="{place}"><h3>{name}</h3>'
        f'<pre tabindex="0" role="region" aria-label="{name}">'
        f'<code id="{place}-code">{shown}</code></pre>'
        f'<button type="button" {copied}>{copy}</button></div>'
    )


def _curl(model: str, key: str | None) -> str:
    messages = [{"role": "user", "content": "Hello!"}]
    body = json.dumps({"model": model, "messages": messages})
    headers = ["Content-Type: application/json"]
    headers += [] if key is None else [f"Authorization: Bearer {key}"]
    lines = [f"curl {_BASE}/chat/completions", *(f'  -H "{header}"' for header in headers)]
    return " \\\n".join([*lines, f"  -d {shlex.quote(body)}"])


_PYTHON: Final = """\
from openai import OpenAI  # pip install openai

client = OpenAI(base_url="{base}", api_key="{key}")
answer = client.chat.completions.create(
    model={model},
    messages=[{{"role": "user", "content": "Hello!"}}],
)
print(answer.choices[0].message.content)"""

_NODE: Final = """\
import OpenAI from "openai";  // npm install openai

const client = new OpenAI({{ baseURL: "{base}", apiKey: "{key}" }});
const answer = await client.chat.completions.create({{
  model: {model},
  messages: [{{ role: "user", content: "Hello!" }}],
}});
console.log(answer.choices[0].message.content);"""


def _sponsor(sponsor: Sponsor | None, title: str) -> str:
    """The picture or the words, linked if there is a link; nothing where nobody is named."""
    if sponsor is None:
        return ""
    name = escape(sponsor.text)
    shown = f'<img src="sponsor" alt="{name}">' if sponsor.image else name
    if sponsor.url:
        shown = f'<a href="{escape(sponsor.url)}" rel="noopener noreferrer sponsored">{shown}</a>'
    return f'<p class="sponsor"><span data-t>{title}</span> {shown}</p>'


def _contact(contact: str, title: str) -> str:
    if not contact:
        return ""
    is_mail = "@" in contact and "/" not in contact
    href = escape(f"mailto:{contact}" if is_mail else contact)
    return f'<p><a href="{href}" rel="noopener noreferrer" data-t>{title}</a></p>'
