"""Many calls by one timer: each when it is due, none that was taken back, in any event loop."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from service.api.alarms import Alarms

AFTER_S = 0.05


def test_each_is_called_when_it_is_due_and_in_turn() -> None:
    came: list[tuple[int, float]] = []

    async def several() -> list[float]:
        alarms, asked = Alarms(AFTER_S), []
        for number in range(5):
            asked.append(time.monotonic())
            alarms.set(lambda number=number: came.append((number, time.monotonic())))
            await asyncio.sleep(AFTER_S / 3)
        await asyncio.sleep(2 * AFTER_S)
        return asked

    asked = asyncio.run(several())
    assert [number for number, _ in came] == [0, 1, 2, 3, 4]
    assert all(at - since >= AFTER_S - 1e-3 for (_, at), since in zip(came, asked, strict=True))


def test_what_is_taken_back_is_not_called_and_not_kept() -> None:
    came: list[int] = []

    async def many() -> Any:
        alarms = Alarms(AFTER_S)
        for _ in range(1000):
            alarms.set(lambda: came.append(0)).cancel()
        kept = alarms.set(lambda: came.append(1))
        held = len(alarms._waiting)
        await asyncio.sleep(2 * AFTER_S)
        kept.cancel()
        return held

    assert asyncio.run(many()) == 1
    assert came == [1]


def test_one_that_sets_another_is_not_called_for_ever() -> None:
    came: list[float] = []

    async def again() -> None:
        alarms = Alarms(AFTER_S)

        def ring() -> None:
            came.append(time.monotonic())
            if len(came) < 3:
                alarms.set(ring)

        alarms.set(ring)
        await asyncio.sleep(5 * AFTER_S)

    asyncio.run(again())
    assert len(came) == 3
    assert came[2] - came[0] >= 2 * AFTER_S - 1e-3


def test_a_loop_that_ended_leaves_the_next_one_its_alarms() -> None:
    came: list[int] = []
    alarms = Alarms(AFTER_S)

    def within(number: int, wait_s: float) -> Callable[[], Any]:
        async def ask() -> None:
            alarms.set(lambda: came.append(number))
            await asyncio.sleep(wait_s)

        return ask

    asyncio.run(within(1, 0.0)())
    asyncio.run(within(2, 3 * AFTER_S)())
    assert came == [2]
