"""What both processes must agree on: the model's name, its slots, and the word for "ready".

This is apart from ``model`` and ``server`` because neither may import the other: the child needs no
event loop, and the gateway must never load the native library.
"""

from __future__ import annotations

from typing import Final

#: As answers spell it. Else llama.cpp would show callers the file's path.
MODEL_NAME: Final = "smollm2-135m-instruct"
#: Requests that are generated at once; further ones wait in llama.cpp's queue.
SLOTS: Final = 4
#: Prompt and answer together. The attention cache takes 23 kB a token: 4 x 2,048 make 340 MB
#: resident (243 MB with 4,096 in all, 520 MB with 16,384), and leave 1,024 for the prompt below the
#: default ceiling of 1,024 for the answer.
SLOT_TOKENS: Final = 2_048
#: The only bytes that the child ever writes, when it answers.
READY: Final = b"ready\n"
