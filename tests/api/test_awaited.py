"""Waiting on an event loop for what a thread computes: who leaves, who is late, and how often each wakes the other."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from threading import Thread
from typing import Any

import pytest

from service.api.awaited import Awaited
from service.job import Job

Message = dict[str, Any]
LITTLE_S, MUCH_S = 1e-4, 1.0


def job(cost_s: float = LITTLE_S) -> Job[str]:
    return Job("work", cost_s, time.monotonic() + 60)


async def stays() -> Message:
    await asyncio.Event().wait()
    return {}


async def leaves() -> Message:
    return {"type": "http.disconnect"}


def waited(*jobs: Job[str], receive: Callable[[], Awaitable[Message]] = stays, timeout_s: float = 30.0,
           attend: Callable[[], object] = lambda: None) -> list[Any]:  # fmt: skip
    async def all_of_them() -> list[Any]:
        awaited: Awaited[str] = Awaited(attend)
        each = (awaited.result(one, receive, timeout_s) for one in jobs)
        return await asyncio.gather(*each, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_what_was_submitted_in_one_turn_is_attended_to_once() -> None:
    jobs, attended = [job() for _ in range(5)], []

    def attend() -> None:
        attended.append(1)
        for number, each in enumerate(jobs):
            each.end(str(number))

    assert waited(*jobs, attend=attend) == ["0", "1", "2", "3", "4"]
    assert attended == [1]


def test_others_have_their_turn_before_more_of_it_is_attended_to() -> None:
    jobs, order = [job() for _ in range(3)], []

    def attend() -> bool:
        place = sum(each.future.done() for each in jobs)
        order.append("attended")
        asyncio.get_running_loop().call_soon(order.append, "another")
        jobs[place].end(str(place))
        return place < 2

    assert waited(*jobs, attend=attend) == ["0", "1", "2"]
    assert order[:5] == ["attended", "another"] * 2 + ["attended"]


def test_a_result_of_another_thread_wakes_the_loop() -> None:
    one = job()
    thread = Thread(target=lambda: (time.sleep(0.05), one.end("done")))
    assert waited(one, attend=thread.start) == ["done"]
    thread.join()


def test_a_fault_is_raised_where_it_is_waited_for() -> None:
    good, bad = job(), job()
    (first, second) = waited(good, bad, attend=lambda: (good.end("good"), bad.fail(ValueError("bad")))[0])
    assert first == "good"
    assert isinstance(second, ValueError)


@pytest.mark.parametrize("cost_s", [LITTLE_S, MUCH_S])
def test_who_leaves_has_no_result_and_its_job_is_given_up(cost_s: float) -> None:
    one = job(cost_s)
    began = time.monotonic()
    assert waited(one, receive=leaves) == [None]
    assert one.future.cancelled()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("timeout_s", [0.001, 0.1])
@pytest.mark.parametrize("cost_s", [LITTLE_S, MUCH_S])
def test_past_its_time_a_job_is_given_up(cost_s: float, timeout_s: float) -> None:
    one = job(cost_s)
    (found,) = waited(one, timeout_s=timeout_s)
    assert isinstance(found, TimeoutError)
    assert one.future.cancelled()


def test_who_is_stopped_while_waiting_gives_its_job_up() -> None:
    one = job()

    async def stopped() -> None:
        waiting = asyncio.ensure_future(Awaited[str](lambda: None).result(one, stays, 30.0))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(stopped())
    assert one.future.cancelled()
