"""The child process: llama.cpp's HTTP server on a Unix socket, until the gateway is gone.

What this is not: a server of ours. xllamacpp brings llama.cpp's, which runs in threads of its own;
the one thread of Python starts it, says so, and then only watches.

Plan: shut every way out but the socket; load the model; write ``READY``; wait for the end of stdin,
a pipe whose other end is the gateway's. The kernel closes that one however the gateway dies.

Invariants:
- It never listens on TCP, and writes nothing to stdout or stderr once it is ready.
- It exits if its server stops accepting, so that the gateway can start another one.
- It leaves by ``os._exit``: llama.cpp's own way out waits for running generations.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from typing import NoReturn

import xllamacpp  # type: ignore[import-untyped] # it has no stubs

from freeapi.hardening import harden
from freeapi.local.shape import MODEL_NAME, READY, SLOT_TOKENS, SLOTS

#: More threads than this don't make a model of 135M parameters faster.
_THREADS_MAX = 4
#: Prompt tokens worked on between two steps of the other slots, about a second's on two old cores.
#: With llama.cpp's 2,048, a long prompt stops everyone's streams for 12 s (measured, same speed).
_BATCH_TOKENS = 128
#: Between two looks at the server. A connection to oneself costs about 0.1 ms.
_WATCH_S = 2.0


def main(socket_path: str, model_path: str) -> NoReturn:
    """Serve the model until stdin ends (exit code 0) or the server fails (1).

    Raises RuntimeError if llama.cpp refuses the model's file.
    """
    harden()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket_path)  # a predecessor's; llama.cpp wouldn't replace it
    server = xllamacpp.Server(parameters(socket_path, model_path))
    assert server.listening_address == f"unix://{socket_path}", "it must not be reachable by others"
    os.write(sys.stdout.fileno(), READY)
    fall_silent()
    if watch(sys.stdin.fileno(), socket_path, _WATCH_S):
        os._exit(1)
    remove_directory_of(socket_path)
    os._exit(0)


def parameters(socket_path: str, model_path: str) -> xllamacpp.CommonParams:
    """llama.cpp's settings: this model on this socket, and nothing else that it could do."""
    params = xllamacpp.CommonParams()
    params.model.path = model_path
    params.model_alias = {MODEL_NAME}
    params.hostnames = [socket_path]
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    params.fit_params = False  # don't shrink the context where memory looks short
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cpuparams.n_threads = min(os.cpu_count() or 1, _THREADS_MAX)
    params.n_gpu_layers = 0
    # Where the caller says nothing: at llama.cpp's own 0.8 a model this small rambles on up to the
    # ceiling, now and then for 1,000 tokens. Source: SmolLM2's model card, "Transformers".
    params.sampling.temp = 0.2
    params.sampling.top_p = 0.9
    params.sampling.penalty_repeat = 1.1
    # Embeddings too, besides text. Of llama.cpp's poolings only the last token's vector lets a text
    # come in batches (any other refuses more than _BATCH_TOKENS), and with a model that reads from
    # left to right it is the one that has seen all of it. While texts are written, they go first.
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    # No state between requests: the time of an answer would tell what others have asked.
    params.cache_prompt = False
    params.cache_idle_slots = False
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.slot_prompt_similarity = 0.0
    # No word about requests, in a log or to other requests.
    params.verbosity = -1
    params.endpoint_slots = False
    params.ui = False
    params.offline = True
    return params


def fall_silent() -> None:
    """Turn stdout and stderr into nothing, also for native code."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for number in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(nothing, number)
    os.close(nothing)


def watch(stdin: int, socket_path: str, every_s: float) -> bool:
    """Wait until ``stdin`` ends or nobody accepts on the socket; returns whether it was the latter.

    Native threads can end without the process: that shows only on their socket.
    """
    while not select.select([stdin], [], [], every_s)[0]:
        if not accepts(socket_path):
            return True
    return False


def accepts(socket_path: str) -> bool:
    """Whether a server listens on the socket. One that is merely busy does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(socket_path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def remove_directory_of(socket_path: str) -> None:
    """Remove the socket and its directory; the gateway may have been quicker."""
    with contextlib.suppress(OSError):
        os.unlink(socket_path)
        os.rmdir(os.path.dirname(socket_path))
