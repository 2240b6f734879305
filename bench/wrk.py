"""The load of JSON requests: wrk, with a script that looks at each answer.

One thread of it asks as fast as it is answered, over so many connections. The script compares each
body with what the upstream sends, byte by byte (a string of Lua's that is there already costs a
comparison, not a copy). Where the answer says how long the prompt was when it arrived, it may say
more than was sent, since a gateway may write the same request in other words, but not less.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from bench.machine import LOAD_CORE, pinned
from bench.server import Server
from bench.texts import MARK, PATH, RECEIVED, Exchange

_SCRIPT = """
wrk.method = "POST"
wrk.body = [==[{request}]==]
{headers}
local expected, before, after = [==[{expected}]==], [==[{before}]==], [==[{after}]==]
local sent, mark, is_exact = {sent}, "{mark}", {is_exact}
wrong, threads = 0, {{}}

local function is_right(body)
    if not is_exact then return body:find(mark, 1, true) end
    if before == "" then return body == expected end
    local from, to = body:find(before, 1, true)
    local received, rest = body:sub((to or 0) + 1):match("^(%d+)(.*)$")
    return from == 1 and rest == after and tonumber(received) >= sent
end

function setup(thread) table.insert(threads, thread) end
function response(status, headers, body)
    if status ~= 200 or not is_right(body) then
        if wrong == 0 then io.stderr:write(status, " ", body:sub(1, 300), "\\n") end
        wrong = wrong + 1
    end
end
function done(summary, latency, requests)
    local errors, wrong = summary.errors, 0
    for _, thread in ipairs(threads) do wrong = wrong + thread:get("wrong") end
    io.stdout:write(string.format(
        'RESULT {{"requests": %d, "us": %d, "p50_us": %d, "p99_us": %d, "wrong": %d}}\\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        wrong + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


class Load(NamedTuple):
    """What one load saw, and what it cost the server."""

    requests: int
    took_s: float
    cpu_us: float
    p50_us: float
    p99_us: float
    wrong: int
    #: The first wrong answer.
    words: str

    def __bool__(self) -> bool:
        """Whether anything was answered at all."""
        return self.requests > 0


def load(
    server: Server, exchange: Exchange, connections: int, seconds: float, folder: Path
) -> Load:
    """Ask the server for so long."""
    path = folder / "script.lua"
    path.write_text(_script(exchange, server))
    whole = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "20s", "--latency"]
    target = f"http://127.0.0.1:{server.port}{PATH}"
    before_s = server.cpu_s()
    with pinned(LOAD_CORE):
        done = subprocess.run(
            [*command, "-s", str(path), target],
            capture_output=True,
            text=True,
            check=True,
            timeout=whole + 60,
        )
    cpu_s = server.cpu_s() - before_s
    seen = json.loads(done.stdout.partition("RESULT ")[2])
    requests = seen["requests"]
    return Load(
        requests,
        seen["us"] / 1e6,
        1e6 * cpu_s / max(1, requests),
        seen["p50_us"],
        seen["p99_us"],
        seen["wrong"] if requests else 1,
        done.stderr.strip(),
    )


def _script(exchange: Exchange, server: Server) -> str:
    answer = exchange.answer.decode()
    before, _, after = answer.partition(RECEIVED) if RECEIVED in answer else ("", "", "")
    return _SCRIPT.format(
        request=exchange.request.decode(),
        headers="\n".join(
            f'wrk.headers["{name}"] = "{text}"' for name, text in server.headers.items()
        ),
        expected=answer,
        before=before,
        after=after,
        sent=len(exchange.request),
        mark=MARK,
        is_exact="true" if server.is_exact else "false",
    )
