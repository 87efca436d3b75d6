"""A request by itself, asked of the application without a client between: what is done at once, and what it leaves."""

import asyncio
import gc
from pathlib import Path
from threading import current_thread
from typing import Any

import orjson
import pytest
from fastapi import FastAPI
from starlette.types import Message

from service.api import create_app
from service.settings import Settings

BODY = orjson.dumps({"model": "line", "inputs": [[1.0, 2.0, 3.0]], "passes": 20})
HEAD: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/predict",
    "raw_path": b"/predict",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"content-length", str(len(BODY)).encode())],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 80),
}


@pytest.fixture(scope="module")
def app(folder: Path) -> FastAPI:
    return create_app(Settings(models=folder))


async def answer(app: FastAPI) -> Any:
    """Return what is answered."""
    given, sent = [{"type": "http.request", "body": BODY, "more_body": False}], list[Message]()

    async def receive() -> Message:
        return given.pop() if given else await asyncio.Event().wait()  # type: ignore[return-value] # which never is

    async def send(message: Message) -> None:
        sent.append(message)

    await app(dict(HEAD), receive, send)
    assert sent[0]["status"] == 200
    return orjson.loads(b"".join(message.get("body", b"") for message in sent))


@pytest.mark.parametrize("is_alone", [True, False])
def test_what_takes_who_knows_how_long_is_not_done_on_the_loop(folder: Path, is_alone: bool) -> None:
    app, threads = create_app(Settings(models=folder)), list[str]()
    app.state.serving.is_alone = lambda: is_alone
    scheduler = app.state.serving.scheduler
    start = scheduler._start

    def noting(jobs: Any) -> Any:
        threads.append(current_thread().name)
        return start(jobs)

    scheduler._start = noting

    asyncio.run(answer(app))
    assert threads == ["compute"]


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_request_leaves_nothing_to_the_collector(app: FastAPI, is_alone: bool) -> None:
    """Which would stop all others for milliseconds, every few hundred requests."""
    app.state.serving.is_alone = lambda: is_alone

    async def ask() -> int:
        for _ in range(5):
            await answer(app)
        gc.collect()
        for _ in range(20):
            await answer(app)
        return gc.collect()

    gc.disable()
    try:
        assert asyncio.run(ask()) == 0
    finally:
        gc.enable()


def test_a_request_that_is_alone_waits_for_no_turn_of_the_loop(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.serving.costs, "of", lambda question: 1e-4)

    async def turns(is_alone: bool) -> tuple[int, Any]:
        app.state.serving.is_alone = lambda: is_alone
        await answer(app)  # prepared
        task, count = asyncio.create_task(answer(app)), 0
        while not task.done():
            await asyncio.sleep(0)
            count += 1
        return count, task.result()

    (alone, its), (among_others, theirs) = asyncio.run(turns(True)), asyncio.run(turns(False))
    assert alone <= 2 < among_others
    assert its == theirs
