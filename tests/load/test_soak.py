"""Hours in short: mixed load, right and wrong questions, callers who leave; nothing fails and nothing grows."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from asks import Ask, questions
from callers import Answer, call_patiently, leave, run, session, share, together
from process import Served, serving
from same import difference

CLIENTS = 8
SETTLED_S = 120
GROWTH = 1.02


@dataclass
class Soaked:
    """What a soak saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


@pytest.mark.slow
def test_mixed_load_ends_as_it_began(folder: Path, tmp_path: Path, soak_s: float) -> None:
    pool = [ask for ask in questions(400, seed=8) if not ask.is_fresh][:200]
    with serving(folder, tmp_path / "log") as own:
        alone = run(together(own.address, pool, 1))
        found = run(_soak(own, pool, alone, soak_s))
    growth = _growth(found.memory, soak_s)
    print(
        f"\n{sum(found.statuses.values())} answers in {soak_s:.0f} s: {dict(found.statuses)}; "
        f"p50 {share(found.took_s, 0.5) * 1e3:.1f} ms, p99 {share(found.took_s, 0.99) * 1e3:.1f} ms; "
        f"memory {found.memory[0][1] / 1e6:.0f} to {found.memory[-1][1] / 1e6:.0f} MB, growth {growth - 1:+.2%}; "
        f"by tenths of the time: {_by_tenths(found.memory)} MB"
    )
    assert set(found.statuses) <= {200, 400}, found.statuses
    assert not found.wrong, found.wrong[:5]
    assert growth <= GROWTH or soak_s < 2 * SETTLED_S  # a short run is still settling


def _growth(memory: list[tuple[float, int]], seconds: float) -> float:
    """Return the last minute's mean memory over that of the minute after two minutes; of a short run, by tenths."""
    settled, while_s = (SETTLED_S, 60) if seconds >= 2 * SETTLED_S else (seconds / 10, seconds / 10)
    first = [held for at, held in memory if settled <= at <= settled + while_s]
    last = [held for at, held in memory if at >= seconds - while_s]
    return (sum(last) / len(last)) / (sum(first) / len(first))


def _by_tenths(memory: list[tuple[float, int]]) -> str:
    places = [len(memory) * tenth // 10 for tenth in range(10)]
    return ", ".join(f"{memory[place][1] / 1e6:.0f}" for place in places)


async def _soak(own: Served, pool: list[Ask], alone: list[Answer], seconds: float) -> Soaked:
    found, began = Soaked(), time.monotonic()
    chance = random.Random(9)
    known = [ask.read(answer.body, answer.headers or {}) for ask, answer in zip(pool, alone, strict=True)]

    def goes_on() -> bool:
        return time.monotonic() - began < seconds

    async def caller(calls: aiohttp.ClientSession) -> None:
        while goes_on():
            place = chance.randrange(len(pool))
            answer = await call_patiently(calls, pool[place])
            found.statuses[answer.status] += 1
            found.took_s.append(answer.took_s)
            told = difference(pool[place].read(answer.body, answer.headers or {}), known[place])
            found.wrong += [told] if told and len(found.wrong) < 100 else []

    async def leaver() -> None:
        while goes_on():
            await leave(own.address, chance.choice(pool), chance)
            await asyncio.sleep(0.1)

    async def looker(calls: aiohttp.ClientSession) -> None:
        while goes_on():
            for path in ("/v2/health/ready", "/v2/models/two", "/openapi.json", "/nowhere"):
                async with calls.get(path) as answer:
                    await answer.read()
                    assert answer.status in (200, 404)
            found.memory.append((time.monotonic() - began, own.memory_bytes()))
            await asyncio.sleep(min(1.0, seconds / 40))

    async with session(own.address) as calls:
        await asyncio.gather(*(caller(calls) for _ in range(CLIENTS)), leaver(), leaver(), looker(calls))
    return found
