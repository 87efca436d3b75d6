"""Callers of a server, many at once: each waiting for its answer, or arriving whatever the others wait for.

A caller has a deadline, so that no test hangs; it does not know what answers should be.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from asks import Ask

DEADLINE_S = 120.0
PATIENCE_S = 60.0
UNSENT, BROKEN = 0, -1
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Answer:
    """What came back; status `BROKEN` where the connection broke, `UNSENT` where the caller had too many open."""

    status: int
    took_s: float
    at_s: float = 0.0
    body: bytes = b""
    headers: Mapping[str, str] | None = None


def session(address: str, **more: Any) -> aiohttp.ClientSession:
    """Return a session with as many connections as are asked for."""
    return aiohttp.ClientSession(
        address, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=DEADLINE_S), **more
    )


async def call(calls: aiohttp.ClientSession, ask: Ask) -> Answer:
    """Ask once."""
    body, headers = ask.message
    began = time.perf_counter()
    try:
        async with calls.post(ask.path, data=body, headers=headers) as answer:
            content = await answer.read()
            return Answer(answer.status, time.perf_counter() - began, began, content, answer.headers)
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
        return Answer(BROKEN, time.perf_counter() - began, began)


async def call_patiently(calls: aiohttp.ClientSession, ask: Ask) -> Answer:
    """Ask, and again where the server says that it has too much to do, when it says."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = await call(calls, ask)
        if answer.status != 429 or time.monotonic() > deadline:
            return answer
        await asyncio.sleep(min(float((answer.headers or {}).get("Retry-After", 1)), 5.0))


async def together(address: str, asks: Sequence[Ask], clients: int) -> list[Answer]:
    """Return the answers to all questions, in their order, asked by some clients at a time."""
    answers: list[Answer | None] = [None] * len(asks)
    places = iter(range(len(asks)))

    async def client(calls: aiohttp.ClientSession) -> None:
        for place in places:
            answers[place] = await call_patiently(calls, asks[place])

    async with session(address) as calls:
        await asyncio.gather(*(client(calls) for _ in range(clients)))
    return [each for each in answers if each is not None]


async def for_a_while(
    calls: aiohttp.ClientSession, choose: Callable[[], Ask], clients: int, seconds: float
) -> list[Answer]:
    """Return the answers that some clients get who ask again as soon as they are answered."""
    answers = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            answers.append(await call(calls, choose()))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def arriving(
    calls: aiohttp.ClientSession, asks: Sequence[Ask], per_second: float, seconds: float, most_open: int = 2000
) -> list[Answer]:
    """Return the answers to questions that arrive at random (Poisson), whether or not others still wait."""
    chance = random.Random(0)
    answers: list[Answer] = []
    waiting: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    due, number = 0.0, 0

    async def one(ask: Ask) -> None:
        answers.append(await call(calls, ask))

    while (due := due + chance.expovariate(per_second)) < seconds:
        if (ahead := began + due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        if len(waiting) >= most_open:
            answers.append(Answer(UNSENT, 0.0, time.perf_counter()))
            continue
        task = asyncio.create_task(one(asks[number % len(asks)]))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
        number += 1
    await asyncio.gather(*waiting)
    return answers


async def leave(address: str, ask: Ask, chance: random.Random, after_s: float | None = None) -> None:
    """Send a part or all of a question over a connection of its own, and break it at a random moment.

    Args:
        address: Whom.
        ask: What.
        chance: When.
        after_s: All is sent, and the caller leaves this long afterwards; at random where None.
    """
    host, _, port = address.removeprefix("http://").rpartition(":")
    body, headers = ask.message
    head = [f"POST {ask.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    message = "\r\n".join([*head, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body
    _, writer = await asyncio.open_connection(host, int(port))
    sent = len(message) if after_s is not None or chance.random() < 0.6 else chance.randrange(len(message))
    writer.write(message[:sent])
    try:
        await writer.drain()
        await asyncio.sleep(chance.expovariate(50) if after_s is None else after_s)
    except ConnectionError:
        pass
    if chance.random() < 0.5:
        writer.transport.abort()
    writer.close()


def share(values: Iterable[float], part: float) -> float:
    """Return the value that a part of all values is at most."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run to the end, with a limit that no test reaches unless something hangs."""
    return asyncio.run(work)
