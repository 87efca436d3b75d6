"""Ten times what can be served: it is served or refused at once, at the usual pace, in the usual memory."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import aiohttp
import pytest
from asks import Ask, heavy, light
from callers import UNSENT, Answer, arriving, call, for_a_while, run, session, share
from process import Served, serving
from sizes import Sizes

TIMES = 10
MOST_PER_S = 20  # what can be served, so that ten times that is little work for the caller
SEEDS = 8  # questions that may not all run together
CALLERS = 3  # so few that none is refused while what can be served is measured
NORMAL_S, LOST_S = 2.0, 30.0
PROBE_S = 0.05
WAIT_S = "0.3"  # what callers accept to wait, about what they do at capacity


@dataclass(frozen=True)
class Load:
    """What was measured: capacity, answers at it and past it, times of health probes, memory, and the way back."""

    per_second: float
    at_capacity: list[Answer]
    past_it: list[Answer]
    probes_s: list[float]
    memory_bytes: tuple[int, int]
    alone_s: float
    back_s: float


@pytest.fixture(scope="module")
def own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(folder, tmp_path_factory.mktemp("log") / "log", THINNET_MAX_WAIT_S=WAIT_S) as found:
        yield found


@pytest.fixture(scope="module")
def load(own: Served, sizes: Sizes) -> Load:
    return run(_load(own, sizes.overload_s))


async def _load(own: Served, seconds: float) -> Load:
    async with session(own.address) as calls:
        asks, per_second = await _what_takes_long(calls)
        alone_s = median([(await call(calls, light())).took_s for _ in range(20)])
        stop = asyncio.Event()
        probing = asyncio.create_task(_probe(own.address, stop))
        at_capacity = await arriving(calls, asks, per_second, min(seconds, 20))
        stop.set()
        before = own.memory_bytes()
        coming = asyncio.create_task(arriving(calls, asks, TIMES * per_second, seconds))
        await asyncio.sleep(seconds)
        ended, after = time.perf_counter(), own.memory_bytes()
        while not await _is_normal(calls, alone_s) and time.perf_counter() - ended < LOST_S:
            await asyncio.sleep(0.05)
        back_s = time.perf_counter() - ended
        past_it = await coming
    return Load(per_second, at_capacity, past_it, await probing, (before, after), alone_s, back_s)


async def _is_normal(calls: aiohttp.ClientSession, alone_s: float) -> bool:
    answer = await call(calls, light())
    return answer.status == 200 and answer.took_s < 2 * alone_s + 0.02


async def _what_takes_long(calls: aiohttp.ClientSession) -> tuple[list[Ask], float]:
    """Return questions of which few are served a second, and how many are."""
    passes = 250
    while True:
        asks = [heavy(passes, seed=seed) for seed in range(SEEDS)]
        turn = cycle(asks)
        for ask in asks:
            await call(calls, ask)
        answers = await for_a_while(calls, lambda turn=turn: next(turn), CALLERS, 3.0)  # type: ignore[misc] # bound now
        began, ended = min(each.at_s for each in answers), max(each.at_s + each.took_s for each in answers)
        per_second = sum(each.status == 200 for each in answers) / (ended - began)
        if per_second <= MOST_PER_S or passes >= 8000:
            return asks, per_second
        passes *= 2


async def _probe(address: str, stop: asyncio.Event) -> list[float]:
    times = []
    async with session(address) as calls:
        while not stop.is_set():
            for path in ("/v2/health/live", "/metrics"):
                began = time.perf_counter()
                async with calls.get(path) as answer:
                    await answer.read()
                times.append(time.perf_counter() - began)
            await asyncio.sleep(0.1)
    return times


@pytest.mark.slow
def test_ten_times_too_much_is_answered_or_refused_and_nothing_else(load: Load) -> None:
    statuses = Counter(each.status for each in load.past_it)
    print(f"\n{load.per_second:.1f}/s can be served; at {TIMES} times that {dict(statuses)}")
    assert UNSENT not in statuses, "requests wait that should have been refused"
    assert set(statuses) == {200, 429}, statuses
    served_per_s = statuses[200] / (max(each.at_s for each in load.past_it) - min(each.at_s for each in load.past_it))
    assert served_per_s > 0.5 * load.per_second


@pytest.mark.slow
def test_who_is_refused_is_told_when_to_come_back(load: Load) -> None:
    refused = [each for each in load.past_it if each.status == 429]
    assert refused
    assert all(float((each.headers or {})["Retry-After"]) > 0 for each in refused)
    assert all(list(_json(each)) == ["error"] for each in refused[:100])


def _json(answer: Answer) -> dict[str, str]:
    found: dict[str, str] = json.loads(answer.body)
    return found


@pytest.mark.slow
def test_who_is_admitted_waits_at_most_twice_as_long_as_at_capacity(load: Load) -> None:
    calm, crowded = (
        share((each.took_s for each in answers if each.status == 200), 0.99)
        for answers in (load.at_capacity, load.past_it)
    )
    print(f"\np99 at capacity {calm * 1e3:.0f} ms, at {TIMES} times that {crowded * 1e3:.0f} ms")
    assert crowded <= 2 * calm


@pytest.mark.slow
def test_memory_stays_what_it_was(load: Load) -> None:
    before, after = load.memory_bytes
    print(f"\nresident at capacity {before / 1e6:.0f} MB, after ten times that {after / 1e6:.0f} MB")
    assert after <= 1.05 * before


@pytest.mark.slow
def test_it_is_back_to_normal_within_two_seconds(load: Load) -> None:
    print(f"\nalone {load.alone_s * 1e3:.1f} ms, and again {load.back_s:.2f} s after the last arrival")
    assert load.back_s <= NORMAL_S


@pytest.mark.slow
def test_health_and_metrics_answer_at_once_at_full_load(load: Load) -> None:
    """By the 95th of 100: the machine's cores are the load's, and so the callers' too."""
    slow = share(load.probes_s, 0.95)
    print(f"\n{len(load.probes_s)} probes, p95 {slow * 1e3:.1f} ms, most {max(load.probes_s) * 1e3:.1f} ms")
    assert slow <= PROBE_S
