"""Asking again: after 429, 503 and a lost connection alone, as late as was asked for, and not for ever."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
from scripted import HANG_UP, Script, said

from service.client import AsyncClient, Client
from service.errors import NotReady, ServerUnreachable, ThinnetError, TooManyRequests

FINE = said(200, {"models": ["m"]})
BUSY = said(429, {"error": "there is too much to do"}, "Retry-After: 0")


@pytest.mark.parametrize(
    "passing",
    [BUSY, said(503, {"error": "not ready"}, "Retry-After: 0"), said(503, "<html>"), HANG_UP, FINE[:-2]],
    ids=["429", "503", "a proxy's 503", "no answer", "half an answer"],
)
def test_what_passes_is_asked_again(script: Script, passing: bytes) -> None:
    server = script(passing, passing, FINE)
    with Client(server.url) as client:
        assert client.models() == ["m"]
    assert len(server.asked) == 3


def test_coroutines_ask_again_too(script: Script) -> None:
    server = script(BUSY, HANG_UP, FINE)

    async def ask() -> list[str]:
        async with AsyncClient(server.url) as client:
            return await client.models()

    assert asyncio.run(ask()) == ["m"]
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 500, 502, 504])
def test_what_will_be_refused_again_is_asked_once(script: Script, status: int) -> None:
    server = script(said(status, {"error": "no"}, "Retry-After: 0"))
    with Client(server.url) as client, pytest.raises(ThinnetError, match="no"):
        client.models()
    assert len(server.asked) == 1


def test_health_is_asked_once_and_a_503_is_its_answer(script: Script) -> None:
    server = script(said(503, {"ready": False, "error": "the server is draining"}))
    with Client(server.url) as client:
        health = client.health()
    assert (health.ready, health.reason, len(server.asked)) == (False, "the server is draining", 1)


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_a_server_is_not_asked_before_the_time_that_it_named(script: Script, kind: str) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    wanted = "1" if kind == "seconds" else format_datetime(at, usegmt=True)
    server = script(said(429, {"error": "busy"}, f"Retry-After: {wanted}"), FINE)
    with Client(server.url) as client:
        client.models()
    (_, first), (_, second) = server.asked
    assert 0.9 < second - first < 4


def test_a_server_that_asks_for_more_time_than_there_is_is_not_waited_for(script: Script) -> None:
    server = script(said(429, {"error": "busy"}, "Retry-After: 3600"))
    started = time.monotonic()
    with Client(server.url, retry_s=5) as client, pytest.raises(TooManyRequests, match="busy") as caught:
        client.models()
    assert caught.value.retry_after_s == 3600
    assert time.monotonic() - started < 3
    assert len(server.asked) == 1


def test_waits_grow(script: Script) -> None:
    server = script(HANG_UP)
    with Client(server.url, retries=3) as client, pytest.raises(ServerUnreachable, match="ended the connection"):
        client.models()
    times = [at for _, at in server.asked]
    waits = [later - sooner for sooner, later in pairwise(times)]
    assert len(waits) == 3
    assert all(least < wait for least, wait in zip((0.2, 0.4, 0.8), waits, strict=True))


def test_attempts_are_bounded_and_so_is_time(script: Script) -> None:
    server = script(BUSY)
    with Client(server.url, retries=2) as client, pytest.raises(TooManyRequests, match="too much to do"):
        client.models()
    assert len(server.asked) == 3
    with Client(server.url, retries=0) as client, pytest.raises(TooManyRequests, match="too much to do"):
        client.models()
    assert len(server.asked) == 4
    with Client(server.url, retry_s=0) as client, pytest.raises(TooManyRequests, match="too much to do"):
        client.models()
    assert len(server.asked) == 5
    started = time.monotonic()
    slow = script(said(503, {"error": "loading"}))
    with Client(slow.url, retries=None, retry_s=0.5) as client, pytest.raises(NotReady, match="loading"):
        client.models()
    assert time.monotonic() - started < 5
    assert len(slow.asked) > 1
