"""POST /predict: what is answered, and that a bad request is told what, where and how to mend it."""

import gzip
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from service import Predictor
from service.graph.compiled import Compiled

ROWS = [[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]]
TWO = {"tokens": [[1, 2, 3, 4, 5]], "features": [[0.5, -0.5]]}


def ask(client: TestClient, **body: Any) -> Any:
    answer = client.post("/predict", json={"model": "line", "inputs": ROWS, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, status: int = 400, **body: Any) -> str:
    answer = client.post("/predict", json={"model": "line", "inputs": ROWS, **body})
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


def test_the_answer_is_the_predictors(client: TestClient, folder: Path) -> None:
    expected = Predictor.load(folder / "line").predict(torch.tensor(ROWS), passes=50, seed=4)

    found = ask(client, passes=50, seed=4)

    assert (found["model"], found["version"], found["passes"], found["seed"]) == ("line", 2, 50, 4)
    torch.testing.assert_close(torch.tensor(found["mean"]), expected.mean)
    torch.testing.assert_close(torch.tensor(found["variance"]), expected.variance)
    assert found["noise"] == "unknown"


def test_products_in_bfloat16_are_asked_for_and_told(client: TestClient, folder: Path) -> None:
    expected = Predictor.load(folder / "line").predict(torch.tensor(ROWS), passes=50, seed=4, precision="bfloat16")
    found = ask(client, passes=50, seed=4, precision="bfloat16")

    torch.testing.assert_close(torch.tensor(found["mean"]), expected.mean)
    assert found["mean"] != ask(client, passes=50, seed=4)["mean"]
    assert any("bfloat16" in note for note in found["notes"])


def test_a_device_without_memory_is_told_as_503(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Compiled, "run", full)
        said = refused(client, 503)
    assert "no memory for a pass of 1 rows, " in said
    assert ask(client)["passes"]


def test_one_row_among_others_is_the_row_alone(client: TestClient) -> None:
    together, alone = ask(client), ask(client, inputs=ROWS[1:])
    assert alone["variance"][0] == pytest.approx(together["variance"][1], rel=1e-5)


def test_a_version_can_be_named(client: TestClient) -> None:
    assert ask(client, version=1)["version"] == ask(client, version="1")["version"] == 1
    assert "no version '3'; it has 1, 2" in refused(client, 404, version=3)


def test_a_null_seed_is_a_fresh_one_which_the_answer_tells(client: TestClient) -> None:
    first, second = ask(client, seed=None), ask(client, seed=None)
    assert first["seed"] != second["seed"]
    assert ask(client, seed=first["seed"])["mean"] == first["mean"]


def test_several_outputs_are_objects_by_name(client: TestClient) -> None:
    found = ask(client, model="two", inputs=TWO, quantities=["classes.standard_error"])

    assert sorted(found["mean"]) == ["classes", "measure"]
    assert found["noise"] == {"classes": "known", "measure": "known"}
    assert found["label"]["classes"][0] in ("red", "green", "blue")
    assert list(found["standard_error"]) == ["classes"]
    assert found["noise_variance"]["measure"] == [[0.25]]
    total, between = found["total_variance"]["measure"][0][0], found["variance"]["measure"][0][0]
    assert total == pytest.approx(between + 0.25)


def test_a_plan_can_be_overridden_site_by_site(client: TestClient) -> None:
    trained = ask(client)
    lower = ask(client, sites={"1": 0.05})
    other = ask(client, sites={"1": {"variant": "gaussian", "p": 0.25}, "2.weight": "dropconnect"})
    assert lower["variance"][0][0] < trained["variance"][0][0] != other["variance"][0][0]


def test_a_plan_that_leaves_nothing_random_is_refused_with_what_could_be(client: TestClient) -> None:
    message = refused(client, model="plain")
    assert "nothing would be random" in message
    assert "weight (dropconnect, dropconnect-sampled, " in message
    assert ask(client, model="plain", variant="dropconnect")["variance"][0][0] > 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"passes": 1}, "passes = 1 is not a whole number from 2 to 10000"),
        ({"passes": 10_001}, "passes"),
        ({"passes": 2.5}, "field 'passes'"),
        ({"passes": True}, "field 'passes'"),
        ({"p": 1.0}, "p = 1.0 is not a drop probability"),
        ({"p": "0.5"}, "field 'p"),
        ({"variant": "bernouli"}, "did you mean 'bernoulli'"),
        ({"variant": "drop-path"}, "fits none of the sites"),
        ({"sites": {"9": 0.1}}, "there is no site '9'"),
        ({"sites": {"1": {"variant": "bernoulli", "rate": 0.1}}}, "no parameter 'rate'"),
        ({"sites": {"1": "dropconnect"}}, "does not fit site '1'"),
        ({"seed": -1}, "seed = -1 is not a whole number"),
        ({"seed": "a"}, "field 'seed'"),
        ({"scope": "batch"}, "field 'scope'"),
        ({"row_offset": -1}, "field 'row_offset'"),
        ({"precision": "float16"}, "precision = 'float16' is not served; the precisions are float32, bfloat16"),
        ({"quantities": ["entropy"]}, "has no quantity 'entropy'; it has mean"),
        ({"quantities": ["quantile_1.5"]}, "has no quantity 'quantile_1.5'"),
        ({"pases": 10}, "field 'pases' is not known; the fields are model"),
        ({"inputs": []}, "no rows"),
        ({"inputs": [0.1, 0.2, 0.3]}, "put the rows in a list"),
        ({"inputs": [[0.1, 0.2]]}, "has the shape [1, 2], it should be [rows, 3]"),
        ({"inputs": [[0.1, 0.2, 0.3], [0.1, 0.2]]}, "input 'input' at [1] has 2 entries where others have 3"),
        ({"inputs": [[0.1, "x", 0.3]]}, "input 'input' at [0, 1] is \"x\", not a number"),
        ({"inputs": [[0.1, None, 0.3]]}, "at [0, 1] is null, not a number"),
        ({"inputs": [[0.1, {}, 0.3]]}, "at [0, 1] is {}, not a number"),
        ({"inputs": [[0.1, 1e300, 0.3]]}, "row 0, position [1] is inf as float32"),
        ({"inputs": {"wrong": ROWS}}, "missing: ['input'], unknown: ['wrong']"),
        ({"inputs": 3}, "has the shape []"),
        (
            {"model": "two", "inputs": {"tokens": [[0, 1, 2, 6, 7]], "features": [[0.0, 0.0]]}},
            "input 'tokens', row 0, position [4] is 7, and the network's table has the places 0 to 6; give numbers",
        ),
        ({"inputs": "text"}, "not a number"),
    ],
)
def test_a_bad_request_is_told_what_and_where(client: TestClient, body: dict[str, Any], told: str) -> None:
    assert told in refused(client, **body)
    assert ask(client)  # and the server goes on


@pytest.mark.parametrize(("number", "told"), [("NaN", "nan"), ("Infinity", "inf"), ("-Infinity", "-inf")])
def test_numbers_that_are_none_are_refused_by_row_and_feature(client: TestClient, number: str, told: str) -> None:
    tokens = [[1, 1, 1, 1, 1]] * 2
    body = f'{{"model": "two", "inputs": {{"tokens": {tokens}, "features": [[0, 1], [0, {number}]]}}}}'
    answer = client.post("/predict", content=body)
    assert answer.status_code == 400
    assert f"input 'features', row 1, feature 'b' is {told}; give finite numbers" in answer.json()["error"]


def test_an_answer_that_is_not_finite_is_reported(client: TestClient) -> None:
    found = ask(client, model="overflowing", inputs=[[1.0, 0.1], [1e-20, 1e-20], [3.0, 0.0]])
    assert found["mean"][0][0] is None
    assert found["mean"][1][0] is not None
    assert any("rows 0, 2 are not finite" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b"\xff\xfe", "not JSON"),
        (b'{"inputs": [[1, 2, 3]]' + b" " * 10, "not JSON"),
        (b'{"model": "line"}', "field 'inputs' is missing"),
        (b'{"model": "line", "inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "deeper than the 64"),
        (b'{"model": "line", "inputs": ' + b"[" * 60 + b"1" + b"]" * 60 + b"}", "has the shape [1, 1, 1,"),
    ],
)
def test_a_body_that_is_no_request_is_told_so(client: TestClient, body: bytes, told: str) -> None:
    answer = client.post("/predict", content=body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]


def test_an_unknown_model_is_told_the_known_ones(client: TestClient) -> None:
    assert "there is no model 'x'; the models are line, overflowing, plain, two" in refused(client, 404, model="x")
    assert "several models are served" in refused(client, 404, model=None)


@pytest.mark.parametrize("name", ["../line", "line/1", "%2e%2e", "line\x00", "a" * 10_000])
def test_a_name_is_never_a_path(client: TestClient, name: str) -> None:
    assert "there is no model" in refused(client, 404, model=name)


def test_packed_bodies_are_read(client: TestClient) -> None:
    body = json.dumps({"model": "line", "inputs": ROWS}).encode()
    for encoding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        answer = client.post("/predict", content=packed, headers={"Content-Encoding": encoding})
        assert answer.json() == ask(client)


@pytest.mark.parametrize(
    ("encoding", "packed", "told"),
    [
        ("gzip", b"not gzip", "the body is not gzip"),
        ("gzip", gzip.compress(b'{"inputs": 1}', mtime=0)[:-4], "cut short"),
        ("br", b"x", "Content-Encoding 'br' is not known"),
    ],
)
def test_a_body_that_does_not_unpack_is_told_so(client: TestClient, encoding: str, packed: bytes, told: str) -> None:
    answer = client.post("/predict", content=packed, headers={"Content-Encoding": encoding})
    assert answer.status_code == 400
    assert told in answer.json()["error"]


def test_what_is_too_large_is_refused_before_it_is_held(client: TestClient) -> None:
    bomb = gzip.compress(b" " * (200 << 20))
    for content, headers in ((b" " * (2 << 20), {}), (bomb, {"Content-Encoding": "gzip"})):
        answer = client.post("/predict", content=content, headers=headers)
        assert answer.status_code == 413
        assert "at most 1048576 bytes are read" in answer.json()["error"]


def test_a_stream_without_a_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    answer = client.post("/predict", content=(b" " * 65536 for _ in range(64)))
    assert answer.status_code == 413


def test_rows_and_passes_have_limits(client: TestClient) -> None:
    assert "1001 rows are past the limit of 1000" in refused(client, 413, inputs=[[0, 0, 0]] * 1001)
    assert "row-passes" in refused(client, 413, inputs=[[0, 0, 0]] * 500, passes=10_000)
    assert ask(client, inputs=[[0, 0, 0]] * 1000, passes=100)


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/nothing", 404, "there is no /nothing; the routes are listed at /docs"),
        ("GET", "/predict", 405, "/predict does not take GET; use POST"),
        ("DELETE", "/v2/models/line", 405, "use GET"),
        ("GET", "/v2/models/nobody", 404, "there is no model 'nobody'"),
        ("GET", "/v2/models/line/versions/7", 404, "no version '7'"),
    ],
)
def test_every_error_is_json_with_its_status(
    client: TestClient, method: str, path: str, status: int, told: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert told in answer.json()["error"]


def test_an_internal_fault_shows_no_insides_and_the_next_request_works(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret /path/to/insides")

    with monkeypatch.context() as patch:
        patch.setattr(Compiled, "run", broken)
        answer = client.post("/predict", json={"model": "line", "inputs": ROWS})
    assert answer.status_code == 500
    assert "internal fault; the server's log has it under" in answer.json()["error"]
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert ask(client)


def test_the_catalogue_is_printed(client: TestClient) -> None:
    found = {each["name"]: each for each in client.get("/variants").json()["variants"]}
    assert {"bernoulli", "gaussian", "uniform", "spatial", "alpha", "feature-alpha", "dropconnect"} <= set(found)
    assert found["bernoulli"]["variance"] == "x² p / q"
    assert found["uniform"]["parameters"] == {"p": 0.25}


def test_the_docs_know_every_route_and_show_requests(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert client.get("/docs").status_code == 200
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/PredictRequest"}
    assert "passes" in document["components"]["schemas"]["PredictRequest"]["properties"]
    assert "/v2/models/{model}/versions/{version}/infer" in document["paths"]


@pytest.mark.parametrize("field", ['"model": "\\ud800"', '"model": "line", "variant": "\\ud800"', '"\\udfff": 1'])
def test_text_that_is_no_unicode_is_told_so(client: TestClient, field: str) -> None:
    answer = client.post("/predict", content=f'{{{field}, "inputs": [[1, 2, 3]]}}')
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]


def test_a_long_run_keeps_no_one_from_asking_what_is_served(client: TestClient) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, client, inputs=[[0.1, 0.2, 0.3]] * 100, passes=10_000, scope="row")
        looks = 0
        while not running.done():
            assert client.get("/v2/models/line").status_code == 200
            assert client.get("/v2/models/line/ready").status_code == 200
            looks += 1
        assert running.result()["passes"] == 10_000
    assert looks > 1


def test_the_integrated_estimator_is_served_and_named(client: TestClient, folder: Path) -> None:
    expected = Predictor.load(folder / "line").predict(torch.tensor(ROWS), estimator="integrated")

    found = ask(client, estimator="integrated", passes=3)

    assert (found["estimator"], ask(client)["estimator"]) == ("integrated", "sampled")
    torch.testing.assert_close(torch.tensor(found["variance"]), expected.variance)
    assert "exact, whatever the passes" in found["notes"][0]


def test_what_cannot_be_integrated_is_refused_with_the_cure(client: TestClient) -> None:
    asked = {"model": "two", "inputs": TWO, "estimator": "integrated"}
    assert "output 'classes': estimator 'integrated' needs a linear output, and softmax follows it" in refused(
        client, **asked
    )
    assert "field 'estimator'" in refused(client, estimator="exact")


def test_a_tolerance_ends_passes_and_tells_what_it_reached(client: TestClient) -> None:
    found = ask(client, tolerance=0.2)

    assert all(64 <= passes <= 1024 for passes in found["passes_used"])
    assert found["passes"] == max(found["passes_used"])
    assert all(error <= 0.2 for (error,) in found["variance_error"])
    assert "passes_used" not in ask(client, passes=64)
    asked = ["passes_used", "variance_error"]
    assert ask(client, passes=found["passes"], quantities=asked)["passes_used"] == [found["passes"]] * 2


def test_a_tolerance_is_checked_and_counts_as_its_most_passes(client: TestClient) -> None:
    assert "tolerance = 2 is not a number between 0 and 1" in refused(client, tolerance=2)
    assert "equally many passes for all rows" in refused(client, tolerance=0.1, quantities=["samples"])
    many = {"inputs": ROWS * 60, "tolerance": 0.2}
    assert "120 rows × 10000 passes are past the limit" in refused(client, 413, **many)
    assert len(ask(client, **many, passes=2000)["mean"]) == 120
