"""Many predictions: in order, some at a time, read as their turn comes; one that fails ends the others."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from processes import until
from scripted import Script, said

from service.client import AsyncClient, Client, Prediction
from service.errors import BadRequest, InvalidInput, RemoteFault

ASKED: dict[str, Any] = {"model": "line", "passes": 4}


def rows(count: int, seen: list[int] | None = None) -> Iterator[list[list[float]]]:
    for index in range(count):
        if seen is not None:
            seen.append(index)
        yield [[float(index), 2.0, 3.0]] if index != 30 else [[1.0]]


def means(found: list[Prediction]) -> list[float]:
    return [each.mean.item() for each in found]


def collect(address: str, inputs: Any, **asked: Any) -> list[Prediction]:
    async def ask() -> list[Prediction]:
        async with AsyncClient(address) as client:
            return [each async for each in client.predict_many(inputs, **asked)]

    return asyncio.run(ask())


def test_predictions_come_in_order_and_are_those_of_single_calls(address: str, client: Client) -> None:
    found = means(list(client.predict_many(rows(30), concurrency=5, **ASKED)))
    assert found == pytest.approx(means(collect(address, rows(30), concurrency=5, **ASKED)), rel=1e-5)
    assert found == pytest.approx(means([client.predict(each, **ASKED) for each in rows(30)]), rel=1e-5)


def test_inputs_may_come_from_a_coroutine(address: str) -> None:
    async def slowly() -> AsyncIterator[list[list[float]]]:
        for each in rows(5):
            await asyncio.sleep(0)
            yield each

    wanted = means(collect(address, rows(5), **ASKED))
    assert means(collect(address, slowly(), **ASKED)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["waits", "awaits"])
def test_one_that_fails_is_named_at_its_turn(kind: str, address: str, client: Client) -> None:
    found: list[Prediction] = []

    async def ask() -> None:
        async with AsyncClient(address) as there:
            async for each in there.predict_many(rows(100), concurrency=4, **ASKED):
                found.append(each)

    def wait() -> None:
        for each in client.predict_many(rows(100), concurrency=4, **ASKED):
            found.append(each)  # what comes before the fault is kept

    with pytest.raises(InvalidInput, match=r"^input 30: input 'input' has the shape \[1, 1\]"):
        wait() if kind == "waits" else asyncio.run(ask())
    assert len(found) == 30


def test_inputs_are_read_as_their_turn_comes_in_the_callers_thread(client: Client) -> None:
    seen: list[int] = []
    threads = set()

    def watched() -> Iterator[list[list[float]]]:
        for each in rows(20, seen):
            threads.add(threading.current_thread())
            yield each

    many = client.predict_many(watched(), concurrency=3, **ASKED)
    assert seen == []
    next(many)
    assert len(seen) == 3
    many.close()
    assert len(seen) == 3
    assert threads == {threading.current_thread()}


def test_no_more_are_under_way_than_were_allowed(script: Script) -> None:
    server = script(said(200, {}), wait_s=0.05)
    with Client(server.url) as client, pytest.raises(RemoteFault, match=r"^input 0: "):
        list(client.predict_many(({"x": [[1.0]]} for _ in range(9)), concurrency=3, model="m"))
    assert server.most == 3


def test_the_others_end_at_once_where_one_fails(script: Script) -> None:
    """Their answers would be ten seconds late; the server sees that nobody waits for them."""
    server = script(said(200, {}), wait_s=10)

    def inputs() -> Iterator[Any]:
        yield {"x": [["a"]]}
        for index in range(9):
            yield {"x": [[1.0]]}
            until(lambda least=index: server.under_way > least, 5)

    with Client(server.url) as client, pytest.raises(InvalidInput, match=r"^input 0: .*not a number"):
        list(client.predict_many(inputs(), concurrency=4, model="m"))
    until(lambda: server.left == len(server.asked) >= 2, 5)


def test_a_coroutine_that_leaves_strands_nobody(script: Script) -> None:
    server = script(said(200, {}), wait_s=10)

    async def ask() -> None:
        async with AsyncClient(server.url) as client, asyncio.timeout(0.5):
            async for each in client.predict_many([{"x": [[1.0]]}] * 9, concurrency=4, model="m"):
                raise AssertionError(each)

    with pytest.raises(TimeoutError, match=r"^$"):
        asyncio.run(ask())
    until(lambda: server.left == 4, 5)


def test_one_that_closes_it_ends_what_is_under_way() -> None:
    ended: list[Any] = []

    class Waiting(AsyncClient):
        async def predict(self, inputs: Any, **_: Any) -> Any:
            if inputs == 0:
                return inputs
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(inputs)

    async def ask() -> None:
        async with Waiting("http://127.0.0.1:1") as client:
            many = client.predict_many(range(9), concurrency=4)
            assert await anext(many) == 0
            await many.aclose()
            assert ended == [1, 2, 3]

    asyncio.run(ask())


def test_a_fault_of_reading_inputs_comes_after_what_was_read(client: Client) -> None:
    def broken() -> Iterator[Any]:
        yield from rows(2)
        raise KeyError("the inputs cannot be read on")

    found: list[Prediction] = []
    with pytest.raises(KeyError, match="cannot be read on"):
        found.extend(client.predict_many(broken(), concurrency=8, **ASKED))
    many = client.predict_many(broken(), concurrency=8, **ASKED)
    assert means([next(many), next(many)]) == pytest.approx(
        means([client.predict(each, **ASKED) for each in rows(2)]), rel=1e-5
    )


def test_at_least_one_is_under_way(client: Client) -> None:
    with pytest.raises(BadRequest, match="concurrency = 0; at least one"):
        next(client.predict_many(rows(3), concurrency=0, **ASKED))
