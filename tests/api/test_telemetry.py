"""OpenTelemetry is off, and on where it is asked for; it is told no inputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from service.api import create_app
from service.repository import Repository
from service.settings import Settings

ROWS = [[0.125, -0.25, 31337.5]]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is traced with the process's own provider, which is set for this test alone."""
    found, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    yield found
    provider.shutdown()


def ask(folder: Path, **settings: Any) -> None:
    with TestClient(create_app(Settings(models=folder, **settings), Repository(folder))) as client:
        client.get("/health/ready")
        answer = client.post(
            "/predict",
            json={"model": "line", "inputs": ROWS, "passes": 20},
            headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
        )
        assert answer.status_code == 200
        assert client.post("/predict", json={"model": "line", "inputs": [["s3cret", 1, 2]]}).status_code == 400


def test_nothing_is_traced_unasked(folder: Path, exporter: InMemorySpanExporter) -> None:
    ask(folder)
    assert exporter.get_finished_spans() == ()


def test_requests_are_traced_under_their_callers_trace_without_inputs(
    folder: Path, exporter: InMemorySpanExporter
) -> None:
    ask(folder, telemetry=True)
    spans = exporter.get_finished_spans()
    requests = [each for each in spans if each.attributes and "http.route" in each.attributes]
    assert [(each.name, each.attributes["http.response.status_code"]) for each in requests if each.attributes] == [
        ("POST /predict", 200),
        ("POST /predict", 400),
    ]
    assert format(requests[0].context.trace_id, "032x") == TRACE
    told = "".join(each.to_json() for each in spans)
    assert "s3cret" not in told
    assert "31337" not in told
