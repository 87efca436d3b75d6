"""GET /metrics: what is counted is what happened, with few labels, and the dashboard and alerts name what is there."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
import torch
import yaml
from scraped import parse, scrape, value
from starlette.testclient import TestClient

from service.api import create_app, ops
from service.api.metrics import FIGURES, Metrics
from service.prediction import Prediction
from service.repository import Repository
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / ".deploy"
ROWS = [[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]]
TWO = {"tokens": [[1, 2, 3, 4, 5]], "features": [[0.5, -0.5]]}
GIVEN = {"name": "input", "datatype": "FP32", "shape": [2, 3], "data": ROWS}


@pytest.fixture(scope="module")
def repository(folder: Path) -> Repository:
    return Repository(folder)


@pytest.fixture
def client(folder: Path, repository: Repository) -> Iterator[TestClient]:
    """A fresh application, so that what is counted is this test's."""
    with TestClient(create_app(Settings(models=folder), repository), raise_server_exceptions=False) as found:
        yield found


def predicted(**quantities: Any) -> Prediction:
    found = {name: torch.as_tensor(values) for name, values in quantities.items()}
    return Prediction(100, 0, "pass", {"out": found}, {"out": "known"})


def exposed(metrics: Metrics) -> Any:
    return parse(metrics.exposition("")[0].decode())


def test_requests_are_counted_by_route_and_outcome_with_their_reason(client: TestClient) -> None:
    client.post("/predict", json={"model": "line", "inputs": ROWS})
    client.post("/predict", json={"model": "line", "inputs": ROWS})
    client.post("/predict", json={"model": "nobody", "inputs": ROWS})
    client.post("/predict", json={"model": "line", "inputs": [["a"]]})
    client.post("/v2/models/line/infer", json={"inputs": [GIVEN]})
    client.get("/predict")

    found = scrape(client)

    def count(route: str, status: int, reason: str) -> float:
        return value(found, "thinnet_requests_total", route=route, status=status, reason=reason)

    assert count("/predict", 200, "ok") == 2
    assert count("/predict", 404, "model_not_found") == 1
    assert count("/predict", 400, "invalid_input") == 1
    assert count("/predict", 405, "method") == 1
    assert count("/v2/models/{model}/infer", 200, "ok") == 1
    assert value(found, "thinnet_request_seconds_count", route="/predict") == 5
    assert value(found, "thinnet_request_seconds_sum", route="/predict") > 0


def test_labels_take_few_values_whatever_is_asked(client: TestClient) -> None:
    for index in range(100):
        client.get(f"/path-{index}")
        client.get(f"/v2/models/model-{index}")
        client.request(f"METHOD{index}", "/predict")

    routes = {dict(labels).get("route") for name, labels in scrape(client) if name == "thinnet_requests_total"}

    assert routes - {"/metrics"} == {"unknown", "/v2/models/{model}", "/predict"}


def test_reasons_are_plain_words_and_no_more_than_are_kept() -> None:
    metrics = Metrics()
    for index in range(1000):
        metrics.rejected(f"reason_{index}")
        metrics.request("/predict", 400, f"{index} is not a word", 0.1)

    found = exposed(metrics)

    reasons = {dict(labels)["reason"] for name, labels in found if name == "thinnet_rejected_total"}
    assert 10 < len(reasons) < 60
    assert value(found, "thinnet_rejected_total") == 1000
    assert value(found, "thinnet_requests_total", reason="other") == 1000


def test_the_uncertainty_itself_is_in_histograms_for_each_model(client: TestClient) -> None:
    answer = client.post("/predict", json={"model": "two", "inputs": TWO}).json()
    line = client.post("/predict", json={"model": "line", "inputs": ROWS[:1]}).json()

    found = scrape(client)

    of_classes = {"model": "two", "output": "classes"}
    entropy = value(found, "thinnet_entropy_nats_sum", **of_classes)
    assert entropy == pytest.approx(answer["entropy"]["classes"][0], rel=1e-5)
    known = value(found, "thinnet_mutual_information_nats_sum", **of_classes)
    assert known == pytest.approx(answer["mutual_information"]["classes"][0], rel=1e-5)
    ratio = line["variance"][0][0] ** 0.5 / abs(line["mean"][0][0])
    assert value(found, "thinnet_relative_deviation_sum", model="line") == pytest.approx(ratio, rel=1e-5)
    assert value(found, "thinnet_relative_deviation_count", model="two", output="measure") == 1


def test_a_large_prediction_adds_few_values_and_every_column_has_its_share() -> None:
    metrics = Metrics()
    many = predicted(mean=torch.ones(1000, 2), variance=torch.tensor([4.0, 100.0]).expand(1000, 2).contiguous())
    for _ in range(100):
        metrics.predicted("m", many)

    found = exposed(metrics)

    assert value(found, "thinnet_relative_deviation_count") == 400
    assert value(found, "thinnet_relative_deviation_bucket", le="2.0") == pytest.approx(200, abs=4)


def test_what_is_not_finite_is_left_out_and_a_sum_never_falls() -> None:
    metrics = Metrics()
    metrics.predicted("m", predicted(mean=[[0.0], [nan], [2.0]], variance=[[1.0], [nan], [1.0]]))
    metrics.predicted("m", predicted(mean=[[1.0]], variance=[[0.0]], entropy=[0.2], mutual_information=[-1e-9]))

    found = exposed(metrics)

    assert value(found, "thinnet_relative_deviation_sum") == 0.5
    assert value(found, "thinnet_mutual_information_nats_sum") == 0
    assert value(found, "thinnet_mutual_information_nats_count") == 1


def test_runs_are_counted_with_their_rows_passes_requests_and_cost() -> None:
    metrics = Metrics()
    metrics.ran("m", 3, 12, 100, 0.02, 0.03)
    metrics.ran("m", 1, 1, 20, 0.01, 0.005)
    metrics.queued("m", 0.5)

    found = exposed(metrics)

    totals = {"passes_total": 120, "rows_total": 13, "run_requests_sum": 4, "run_requests_count": 2}
    totals |= {"run_cost_seconds_sum": 0.03, "compute_seconds_sum": 0.035, "queue_seconds_sum": 0.5}
    for name, total in totals.items():
        assert value(found, f"thinnet_{name}", model="m") == pytest.approx(total), name


def test_gauges_are_what_the_server_is_now(client: TestClient) -> None:
    class Busy:
        in_flight, queued_cost_s, stalled_s, closed = 7, 1.5, 0.25, False

    client.app.state.serving.scheduler = Busy()  # type: ignore[attr-defined] # FastAPI's

    found = scrape(client)

    assert value(found, "thinnet_in_flight") == 7
    assert value(found, "thinnet_queued_cost_seconds") == 1.5
    assert value(found, "thinnet_stalled_seconds") == 0.25
    assert value(found, "thinnet_ready") == 1
    assert value(found, "thinnet_model_ready", model="line") == 1
    assert value(found, "thinnet_resident_memory_bytes") > 1 << 20
    assert value(found, "thinnet_build_info", torch=torch.__version__) == 1
    assert value(found, "thinnet_model_info", model="line", version=2) == 1


def test_gauges_are_kept_new_by_a_process_that_nobody_scrapes(
    folder: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_SAMPLE_S", 0.01)
    app = create_app(Settings(models=folder), repository)
    with TestClient(app):
        for closed, ready in ((False, 1), (True, 0), (False, 1)):
            app.state.serving.scheduler = SimpleNamespace(in_flight=0, queued_cost_s=0, stalled_s=0, closed=closed)
            time.sleep(0.2)
            assert value(exposed(app.state.metrics), "thinnet_ready") == ready


def test_a_version_that_is_served_no_more_is_0() -> None:
    metrics = Metrics()
    metrics.models([("m", "1"), ("n", "1")])
    metrics.models([("m", "2"), ("n", "1")])

    found = exposed(metrics)

    assert [value(found, "thinnet_model_info", model="m", version=version) for version in (1, 2)] == [0, 1]
    assert value(found, "thinnet_model_info", model="n", version=1) == 1


def test_applications_in_one_process_count_apart(client: TestClient, repository: Repository, folder: Path) -> None:
    other = TestClient(create_app(Settings(models=folder), repository))
    client.get("/variants")
    assert value(scrape(client), "thinnet_requests_total", route="/variants") == 1
    assert value(scrape(other), "thinnet_requests_total", route="/variants") == 0


def test_the_format_is_the_one_that_the_scraper_asks_for(client: TestClient) -> None:
    plain, open_metrics = "text/plain; version=0.0.4", "application/openmetrics-text; version=1.0.0"
    assert client.get("/metrics").headers["content-type"].startswith(plain)
    answer = client.get("/metrics", headers={"Accept": open_metrics})
    assert answer.headers["content-type"].startswith(open_metrics)
    assert answer.text.endswith("# EOF\n")


def test_several_processes_are_one_view(tmp_path: Path) -> None:
    script = """
import os, runpy
metrics = runpy.run_path("service/api/metrics.py")["Metrics"]()
def count(in_flight, stalled_s):
    metrics.ran("m", 1, 2, 100, 0.1, 0.2)
    metrics.gauge("thinnet_in_flight", in_flight)
    metrics.gauge("thinnet_stalled_seconds", stalled_s)
    metrics.add()
reader, writer = os.pipe()
done, go = os.pipe()
if not (child := os.fork()):
    count(3, 9.0)
    os.write(writer, b".")
    os.read(done, 1)
    os._exit(0)
count(4, 1.0)
os.read(reader, 1)
print(metrics.exposition("")[0].decode())
os.write(go, b".")
os.waitpid(child, 0)
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)

    found = parse(done.stdout)

    assert value(found, "thinnet_rows_total", model="m") == 4
    assert value(found, "thinnet_compute_seconds_count", model="m") == 2
    assert value(found, "thinnet_in_flight") == 7
    assert value(found, "thinnet_stalled_seconds") == 9


def queries(node: Any) -> Iterator[str]:
    """Return every PromQL expression in a dashboard or in rules."""
    if isinstance(node, dict):
        for key, below in node.items():
            if key == "expr" or (key == "query" and isinstance(below, str) and "(" in below):
                label_values = re.fullmatch(r"label_values\((.+), *\w+\)", below)
                yield label_values[1] if label_values else below
            else:
                yield from queries(below)
    elif isinstance(node, list):
        for below in node:
            yield from queries(below)


def selected(text: str) -> set[tuple[str, frozenset[str]]]:
    """Return the metrics that a query reads, each with the labels that it names there."""
    filled = re.sub(r"\$(__rate_interval|__range)", "5m", text).replace("$__interval", "1m")
    found: set[tuple[str, frozenset[str]]] = set()

    def walk(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add((node.name, frozenset(each.name for each in node.matchers.matchers)))
        for name in ("expr", "lhs", "rhs", "args", "vector_selector", "param"):
            below = getattr(node, name, None)
            for each in below if isinstance(below, list) else [below]:
                if each is not None:
                    walk(each)

    walk(promql_parser.parse(filled))
    return found


DOCUMENTS = {"grafana.json": json.loads, "alerts.yaml": yaml.safe_load}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_metric_of_dashboard_and_alerts_is_served(document: str) -> None:
    texts = list(queries(DOCUMENTS[document]((DEPLOY / document).read_text())))
    read = {each for text in texts for each in selected(text)}

    assert len(read) > 5
    for name, labels in read:
        if name == "up":
            continue
        figure = FIGURES.get(name) or FIGURES.get(re.sub(r"_(bucket|sum|count)$", "", name))
        assert figure is not None, name
        assert name in FIGURES or figure.kind == "histogram", name
        assert labels <= {*figure.labels, "le", "job", "instance", "__name__"}, (name, labels)


def test_the_dashboard_shows_every_metric() -> None:
    texts = queries(json.loads((DEPLOY / "grafana.json").read_text()))
    read = {re.sub(r"_(bucket|sum|count)$", "", name) for text in texts for name, _ in selected(text)}
    assert read >= set(FIGURES)


def test_every_panel_and_alert_can_be_read_by_people() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    places = [each["gridPos"] for each in panels]
    assert len({each["id"] for each in panels}) == len(panels)
    assert all(each["title"] and (each["type"] == "row" or each["targets"]) for each in panels)
    assert all(each["x"] + each["w"] <= 24 for each in places)
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    rules = [
        rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    assert len({each["alert"] for each in rules}) == len(rules) >= 6
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert {"summary", "description"} <= set(rule["annotations"])


@pytest.fixture
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_take_turns_often")
def test_several_threads_may_note_and_add_at_once() -> None:
    metrics, found = Metrics(), predicted(mean=[[1.0]], variance=[[4.0]])

    def work(_: int) -> None:
        for _ in range(300):
            metrics.predicted("m", found)
            metrics.add()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))  # raises what a thread raised
    metrics.add()
    count = metrics.registry.get_sample_value("thinnet_relative_deviation_count", {"model": "m", "output": "out"})
    assert count == 8 * 300
