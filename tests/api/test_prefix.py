"""Behind a proxy that strips a prefix, every link and every answer is as without it."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from served import listening

from service.api import create_app
from service.repository import Repository
from service.settings import Settings

PREFIX = "/models/uncertainty"
FILES = ("start.js", "swagger-ui-bundle.js", "swagger-ui.css")


@pytest.fixture(scope="module")
def proxied(folder: Path) -> Iterator[httpx2.Client]:
    """A client of a server under a prefix, which a proxy would have taken off."""
    app = create_app(Settings(models=folder), Repository(folder))
    with listening(app, PREFIX) as address, httpx2.Client(base_url=address) as client:
        yield client


def test_the_docs_find_the_document_and_the_document_the_server(proxied: httpx2.Client) -> None:
    seen = httpx2.URL(f"http://proxy{PREFIX}/docs")
    files = re.findall(r'(?:src|href)="(docs/[^"]+)"', proxied.get("/docs").text)
    assert {str(seen.join(each)) for each in files} == {f"{seen}/{name}" for name in FILES}
    assert all(proxied.get(f"/{each}").status_code == 200 for each in files)
    (document,) = re.findall(r'url: "([^"]+)"', proxied.get("/docs/start.js").text)
    assert str(seen.join(document)) == f"http://proxy{PREFIX}/openapi.json"
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
