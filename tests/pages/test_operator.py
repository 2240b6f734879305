"""The operator's page: its files, what it is told, and the day's course. (A browser: promises/.)"""

from __future__ import annotations

import asyncio
import json
import re
from importlib import resources

import pytest

from freeapi.measures import DEFINITIONS
from freeapi.pages.course import MINUTE_S, POINTS_MAX, Course, Pulse
from freeapi.pages.operator import live
from freeapi.policy import failures
from tests.pages.instruments import NOON_S, Instruments, get
from tests.scripted_upstream import happens

PAGE_BYTES_MAX = 60_000


async def test_live_tells_all_that_the_page_shows() -> None:
    """Sums since the start, and gauges as they are now."""
    instruments = Instruments()
    instruments.answer()
    instruments.refuse()
    instruments.metrics.upstream_failed("openai", "server_error")
    async with instruments.served() as port:
        shown = (await get(port, "/live")).json()
    assert shown["now_s"] == NOON_S
    assert shown["totals"] == {
        "requests": 2,
        "refused": {"rate_limit_exceeded": 1},
        "input_tokens": 200,
        "output_tokens": 300,
        "spent_usd": 0.01,
        "left_usd": 3.0,
    }
    assert (shown["active"], shown["streams"], shown["waiting"]) == (0, 0, 2)
    assert shown["connections"] == {"caller": 4, "upstream": 3}
    assert (shown["left_usd"], shown["cap_usd"]) == (
        {"all": 3.0, "openai": 1.0},
        {"all": 5.0, "openai": 2.0},
    )
    openai = shown["upstreams"].pop("openai")
    assert shown["upstreams"] == {}
    assert (openai["tries"], openai["retries"], openai["cost_usd"]) == (1, 0, 0.01)
    assert openai["failures"] == {"server_error": 1}
    assert openai["keys"]["ok"] == 2
    for name, count in (("duration", 1), ("first_token", 1), ("queue_wait", 0)):
        times = shown["times"][name]
        assert len(times["counts"]) == len(times["bounds"]) + 1
        assert sum(times["counts"]) == count


def test_live_says_what_is_missing() -> None:
    """What isn't known, as before any worker has reported, is null and not an error."""
    now = live({name: {} for name in DEFINITIONS})
    assert (now["waiting"], now["version"], now["totals"].left_usd) == (None, None, None)
    assert now["upstreams"] == {}


async def test_answers_name_no_caller_and_little_of_keys() -> None:
    """A name of a caller's choice is nowhere on the admin port; of a key its four characters."""
    instruments = Instruments()
    instruments.answer(model="canary-model", label="canary-label")
    with instruments.keys.lease("canary-model", (), 0.0) as lease:
        instruments.keys.failed(lease, failures.RATE_LIMITED, 0.0, 7.0)
    instruments.course.take(60)
    async with instruments.served() as port:
        for target in ("/", "/live", "/course", "/keys", "/metrics"):
            shown = await get(port, target)
            assert shown.status == 200
            assert b"canary" not in shown.body
            assert (b"AAAA" in shown.body) is (target == "/keys")


async def test_pages_are_guarded_like_the_keys() -> None:
    """A name that DNS led here is 404 on each path, and a POST is 405."""
    instruments = Instruments()
    paths = ["/", "/operator.css", "/operator.js", "/live", "/course", "/metrics", "/keys"]
    async with instruments.served() as port:
        for path in paths:
            assert (await get(port, path, "HEAD")).status == 200
            assert (await get(port, path, "POST")).status == 405
            led = f"GET {path} HTTP/1.1\r\nhost: evil.example\r\n\r\n".encode()
            assert (await ask_raw(port, led)).startswith(b"HTTP/1.1 404")


async def ask_raw(port: int, data: bytes) -> bytes:
    """The first bytes of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head


async def test_policy_allows_only_the_page_itself() -> None:
    """Each answer forbids all that isn't our own file, being framed, and being kept."""
    instruments = Instruments()
    async with instruments.served() as port:
        for path in ("/", "/live", "/metrics", "/keys"):
            shown = await get(port, path)
            policy = shown.header("content-security-policy") or ""
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert shown.header("x-content-type-options") == "nosniff"
            assert shown.header("referrer-policy") == "no-referrer"
            assert shown.header("cache-control") == "no-store"
            assert shown.header("access-control-allow-origin") is None


def test_page_is_small_and_refers_to_nobody() -> None:
    """All files together are under 60 KB and name no other host."""
    folder = resources.files("freeapi.pages") / "static"
    files = [(folder / f"operator.{kind}").read_text("utf-8") for kind in ("html", "css", "js")]
    assert sum(len(file.encode()) for file in files) < PAGE_BYTES_MAX
    addresses = set(re.findall(r"https?://[^\"'\s)]+", "".join(files)))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name of XML, never fetched
    assert not re.search(r"\sstyle=|\son\w+=|<script>|innerHTML", "".join(files))


# --- The day's course -----------------------------------------------------------------------------


def test_course_has_what_each_minute_brought() -> None:
    """A point is the minute's differences, and the budget that was left at its end."""
    instruments = Instruments()
    instruments.answer()
    instruments.refuse()
    instruments.course.take(60)
    instruments.answer()
    instruments.left_nanousd = 1_500_000_000
    instruments.course.take(120)
    shown = json.loads(instruments.course.body())
    fields = shown["fields"]
    first, second = (dict(zip(fields, values, strict=True)) for values in shown["points"])
    spent = {"spent_usd": pytest.approx(0.01), "tokens": 500}
    assert first == {"until_s": 60, "requests": 2, "refused": 1, "left_usd": 3.0, **spent}
    assert second == {"until_s": 120, "requests": 1, "refused": 0, "left_usd": 1.5, **spent}


def test_course_is_a_day_long_at_most() -> None:
    """After a day the oldest point goes for each that comes, and the answer stays under 100 KB."""
    instruments = Instruments()
    for minute in range(POINTS_MAX + 5):
        instruments.course.take(minute * MINUTE_S)
    assert len(instruments.course.points) == POINTS_MAX == 24 * 60
    assert instruments.course.points[0].until_s == 5 * MINUTE_S
    assert len(instruments.course.body()) < 100_000


def test_course_doesnt_fall_with_a_worker() -> None:
    """Sums that fall, as when a worker has died, are a minute without anything."""
    known = [Instruments(), Instruments()]
    known[0].answer()
    sources = iter([known[0].metrics.collect(), known[1].metrics.collect()])
    course = Course(lambda: next(sources))
    course.take(60)
    point = course.points[0]
    assert (point.requests, point.refused, point.tokens, point.spent_usd) == (0, 0, 0, 0.0)


async def test_pulse_tells_each_new_minute_once() -> None:
    """A beat in a new minute passes on the minute's time; the others pass nothing on."""
    now_s = [NOON_S]
    minutes: list[int] = []
    loop = asyncio.get_running_loop()
    pulse = Pulse(loop, lambda: now_s[0], minutes.append)
    for now_s[0] in (NOON_S + 29, NOON_S + 30, NOON_S + 31, NOON_S + 90):
        pulse.beat(loop.time())
    pulse.close()
    assert minutes == [int(NOON_S) + 30, int(NOON_S) + 90]


async def test_pulse_knows_how_late_it_is() -> None:
    """The lag is the worst of the last minute's beats, and never less than none."""
    loop = asyncio.get_running_loop()
    pulse = Pulse(loop, lambda: NOON_S, lambda minute: None)
    pulse.beat(loop.time() + 5)
    assert pulse.lag_s == 0.0
    pulse.beat(loop.time() - 2)
    assert 2 <= pulse.lag_s < 3
    for _ in range(MINUTE_S):
        pulse.beat(loop.time() + 5)
    assert pulse.lag_s == 0.0
    pulse.close()


async def test_pulse_beats_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop calls it again and again until it is closed."""
    monkeypatch.setattr("freeapi.pages.course.BEAT_S", 0.001)
    thrice = asyncio.Event()
    times = iter([0.0, 60.0, 120.0, 180.0])

    def each_minute(until_s: int) -> None:
        if until_s == 180:
            pulse.close()
            thrice.set()

    pulse = Pulse(asyncio.get_running_loop(), lambda: next(times), each_minute)
    await happens(thrice)
    pulse.close()
