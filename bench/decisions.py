"""What all decisions about one request cost together, in processor time: prints, never asserts.

The hot path of DESIGN section 4 without its bytes: who is asking, the limits, the caller's headers,
a key, its success, and at the end what is given back. The promise is under 6 µs (issue 3).

    .venv/bin/python bench/decisions.py
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable

import uvloop

from freeapi.gate import Gate, Visitor, new_secret
from freeapi.http.wire import Peer, Request
from freeapi.journal import Journal
from freeapi.policy import failures
from freeapi.policy.keys import KeyPool, KeySpec, Lease, UpstreamKeys
from freeapi.policy.limits import Admission, CallerLimits
from freeapi.policy.models import Model, ModelTable
from freeapi.policy.payload import Rules, prepare

#: Short rounds, so that the best one falls between what else runs on the machine.
ROUNDS, REQUESTS = 1_000, 200
BODY = b'{"model":"gpt-3.5-turbo","messages":[{"role":"user","content":"Say hello, please."}]}'
MODEL = Model(
    name="gpt-3.5-turbo",
    upstream_model="gpt-4o-mini",
    max_output_tokens=1_024,
    output_field="max_tokens",
    rpm=10**9,
    tpm=10**11,
)
#: High enough that none is refused: a refusal is another path.
LIMITS = CallerLimits(rpm=10**9, tpm=10**11, rpd=10**9, concurrency=8)
USAGE_TOKENS = 40


class Path:
    """The decisions of one request, step by step, with ten keys and a thousand callers."""

    def __init__(self, now: Callable[[], float], proxy_hops: int) -> None:
        journal = Journal(io.StringIO(), "info", time.time)
        self.now = now
        self.gate = Gate(
            limits=LIMITS,
            tokens=None,
            proxy_hops=proxy_hops,
            models=[MODEL],
            now=now,
            journal=journal,
            secret=new_secret,
        )
        keys = tuple(KeySpec(f"{number:04}", b"%d" % number) for number in range(10))
        self.keys = KeyPool([UpstreamKeys("openai", keys)], lambda: 0.5)
        table = ModelTable([MODEL], created=0)
        self.prepared = prepare("chat", BODY, table, Rules(n_max=1, unknown_fields="drop"))
        self.requests = [_request(number) for number in range(1_000)]

    def identify(self, number: int) -> Visitor:
        """Who is asking: known from the connection, or read from the proxy's header."""
        return self.gate.identify(self.requests[number % 1_000])

    def admit(self, visitor: Visitor) -> Admission:
        """May they."""
        return self.gate.admit(visitor, self.prepared)

    def lease(self) -> Lease:
        """With which key."""
        return self.keys.lease(MODEL.upstream_model, MODEL.upstreams, self.now())

    def succeed(self, lease: Lease) -> None:
        """The upstream's 200, with OpenAI's headers."""
        self.keys.succeeded(lease, self.now(), failures.exhausted_for_s(_ANSWER_HEADERS))

    def run(self, number: int) -> None:
        """All of it, in the order of ``proxy``."""
        visitor = self.identify(number)
        admission = self.admit(visitor)
        lease = self.lease()
        self.gate.headers(visitor)
        self.succeed(lease)
        lease.release()
        admission.settle(USAGE_TOKENS, self.now())


_ANSWER_HEADERS = {
    b"content-type": b"application/json",
    b"x-ratelimit-remaining-requests": b"9999",
    b"x-ratelimit-remaining-tokens": b"199900",
    b"x-ratelimit-reset-requests": b"8ms",
    b"x-ratelimit-reset-tokens": b"12ms",
}


def _request(number: int) -> Request:
    request = Request(Peer(f"10.0.{number // 250}.{number % 250}"))
    request.add_header(b"X-Forwarded-For", f"198.51.{number // 250}.{number % 250}".encode())
    request.add_header(b"Authorization", b"Bearer sk-free-api")
    return request


def cost_us(step: Callable[[int], object]) -> float:
    """Microseconds of processor time for one call: the best of some rounds, as ``timeit`` says."""
    costs = []
    for _ in range(ROUNDS):
        start_s = time.process_time()
        for number in range(REQUESTS):
            step(number)
        costs.append((time.process_time() - start_s) / REQUESTS * 1e6)
    return min(costs)


def each_step(path: Path) -> dict[str, Callable[[int], object]]:
    """Parts by themselves; a part that needs its opposite is measured together with it."""
    visitor = path.identify(0)

    def admit_and_settle(_: int) -> None:
        path.admit(visitor).settle(USAGE_TOKENS, path.now())

    def lease_to_release(_: int) -> None:
        lease = path.lease()
        path.succeed(lease)
        lease.release()

    return {
        "identify": path.identify,
        "admit, settle": admit_and_settle,
        "headers": lambda _: path.gate.headers(visitor),
        "lease, succeeded, release": lease_to_release,
        "all decisions of a request": path.run,
    }


async def main() -> None:
    """Print one line a step."""
    now = asyncio.get_running_loop().time
    for hops in (0, 1):
        path = Path(now, hops)
        print(f"FREEAPI_PROXY_HOPS={hops}; µs of processor time, best of {ROUNDS} rounds")
        for name, step in each_step(path).items():
            print(f"{cost_us(step):7.2f}  {name}")


if __name__ == "__main__":
    uvloop.run(main())
