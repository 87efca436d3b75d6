"""Many tasks, some at a time, their results in order; it does not know what they do."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar

from service.errors import BadRequest

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Work = Callable[[_Item], Awaitable[_Result]]
Start = Callable[[], Awaitable[_Result]]


async def in_order(
    work: Work[_Item, _Result], items: Iterable[_Item] | AsyncIterable[_Item], concurrency: int
) -> AsyncGenerator[_Result]:
    """Yield the result of each item, in their order, with at most so many under way and as many items read ahead.

    A fault is raised at its turn, that of reading an item too. What is under way then, or when the caller leaves, is
    cancelled.
    """
    _check(concurrency)
    tasks: deque[asyncio.Future[_Result]] = deque()
    try:
        async for start in _starts(work, items):
            tasks.append(asyncio.ensure_future(start()))
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
    portal: "BlockingPortal", work: Work[_Item, _Result], items: Iterable[_Item], concurrency: int
) -> Iterator[_Result]:
    """Do the same from a thread without an event loop: items are read in it, tasks run in the portal's."""
    _check(concurrency)
    futures: deque[Future[_Result]] = deque()
    try:
        for start in _starts_here(work, items):
            futures.append(portal.start_task_soon(start))
            if len(futures) >= concurrency:
                yield futures[0].result()
                futures.popleft()
        while futures:
            yield futures[0].result()
            futures.popleft()
    finally:
        for future in futures:
            future.cancel()


def _starts_here(work: Work[_Item, _Result], items: Iterable[_Item]) -> Iterator[Start[_Result]]:
    """Yield what starts each item's task; a fault of reading becomes the last task's."""
    try:
        for item in items:
            yield partial(work, item)
    except Exception as error:
        yield partial(_fail, error)


async def _starts(
    work: Work[_Item, _Result], items: Iterable[_Item] | AsyncIterable[_Item]
) -> AsyncIterator[Start[_Result]]:
    if not isinstance(items, AsyncIterable):
        for start in _starts_here(work, items):
            yield start
        return
    try:
        async for item in items:
            yield partial(work, item)
    except Exception as error:
        yield partial(_fail, error)


async def _fail(error: Exception) -> NoReturn:
    raise error


def _check(concurrency: int) -> None:
    if concurrency < 1:
        raise BadRequest(f"concurrency = {concurrency}; at least one request has to be under way")
