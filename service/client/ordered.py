"""Many tasks, some at a time, their results in order; it does not know what they do."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from anyio.from_thread import BlockingPortal

from service.errors import BadRequest

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Work = Callable[[_Item], Awaitable[_Result]]


async def in_order(
    work: Work[_Item, _Result], items: Iterable[_Item] | AsyncIterable[_Item], concurrency: int
) -> AsyncIterator[_Result]:
    """Yield the result of each item, in their order, with at most so many under way and as many items read ahead.

    What is under way is cancelled where one fails or the caller leaves.
    """
    _check(concurrency)
    tasks: deque[asyncio.Task[_Result]] = deque()
    try:
        async for item in _each(items):
            tasks.append(asyncio.ensure_future(work(item)))
            if len(tasks) >= concurrency:
                yield await tasks[0]
                tasks.popleft()
        while tasks:
            yield await tasks[0]
            tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def in_order_through(
    portal: BlockingPortal, work: Work[_Item, _Result], items: Iterable[_Item], concurrency: int
) -> Iterator[_Result]:
    """Do the same from a thread without an event loop: items are read in it, tasks run in the portal's."""
    _check(concurrency)
    futures: deque[Future[_Result]] = deque()
    try:
        for item in items:
            futures.append(portal.start_task_soon(work, item))
            if len(futures) >= concurrency:
                yield futures[0].result()
                futures.popleft()
        while futures:
            yield futures[0].result()
            futures.popleft()
    finally:
        for future in futures:
            future.cancel()


async def _each(items: Iterable[_Item] | AsyncIterable[_Item]) -> AsyncIterator[_Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _check(concurrency: int) -> None:
    if concurrency < 1:
        raise BadRequest(f"concurrency = {concurrency}; at least one request has to be under way")
