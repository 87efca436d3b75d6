"""Behind a proxy that strips a prefix, every link and every answer is as without it."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn

from service.api import create_app
from service.repository import Repository
from service.settings import Settings

PREFIX = "/models/uncertainty"


@pytest.fixture(scope="module")
def proxied(folder: Path) -> Iterator[httpx2.Client]:
    """A client of a server under a prefix, which a proxy would have taken off."""
    app = create_app(Settings(models=folder), Repository(folder))
    config = uvicorn.Config(app, port=0, root_path=PREFIX, log_config=None, access_log=False)
    with config.bind_socket() as listener:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with httpx2.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            yield client
        server.should_exit = True
        thread.join(20)


def test_the_docs_find_the_document_and_the_document_the_server(proxied: httpx2.Client) -> None:
    page = proxied.get("/docs").text
    assert re.findall(r"url: '([^']+)'", page) == [f"{PREFIX}/openapi.json"]
    assert proxied.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]


def test_the_root_leads_to_the_docs_under_the_prefix(proxied: httpx2.Client) -> None:
    answer = proxied.get("/", follow_redirects=False)
    assert answer.status_code == 307
    outside = httpx2.URL(f"http://proxy{PREFIX}/")
    assert str(outside.join(answer.headers["location"])) == f"http://proxy{PREFIX}/docs"


def test_routes_answer_and_are_counted_as_without_a_prefix(proxied: httpx2.Client) -> None:
    body = {"model": "line", "inputs": [[1, 2, 3]]}
    assert proxied.post("/predict", json=body).status_code == 200
    assert proxied.get("/v2/health/ready").json() == {"ready": True}
    assert proxied.get("/v2").status_code == 200
    assert 'route="/predict",status="200"' in proxied.get("/metrics").text.replace('reason="ok",', "")


def test_an_error_names_the_place_that_the_caller_sees(proxied: httpx2.Client) -> None:
    told = proxied.get("/nothing").json()["error"]
    assert told == f"there is no {PREFIX}/nothing; the routes are listed at {PREFIX}/docs"
