"""What the Open Inference Protocol carries of this service, and what is said of a fault; its clauses are beside."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from service.api import create_app
from service.repository import Repository
from service.settings import Settings

LENGTH = "Inference-Header-Content-Length"
ROWS = [[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]]
GIVEN = {"name": "input", "datatype": "FP32", "shape": [2, 3], "data": ROWS}


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(models=folder), Repository(folder)), raise_server_exceptions=False) as found:
        yield found


def infer(client: TestClient, **body: Any) -> Any:
    return client.post("/v2/models/line/infer", json={"inputs": [GIVEN], **body})


def test_model_metadata_has_the_protocols_fields_and_the_sites(client: TestClient) -> None:
    found = client.get("/v2/models/line").json()
    assert {"name", "versions", "platform", "inputs", "outputs"} <= set(found)
    assert found["versions"] == ["1", "2"]
    assert found["inputs"][0] | {"shape": [-1, 3], "datatype": "FP32"} == found["inputs"][0]
    assert {"name": "mean", "datatype": "FP32", "shape": [-1, 1]} in found["outputs"]
    site = next(each for each in found["sites"] if each["name"] == "1")
    assert (site["kind"], site["variant"], site["p"], site["shape"]) == ("activation", "bernoulli", 0.25, [4])
    assert "gaussian" in site["fits"]


def test_every_shape_in_the_metadata_is_what_is_served(client: TestClient) -> None:
    found = client.get("/v2/models/two").json()
    inputs = [
        {"name": "tokens", "datatype": "INT64", "shape": [3, 5], "data": [1] * 15},
        {"name": "features", "datatype": "FP32", "shape": [3, 2], "data": [0.5] * 6},
    ]
    outputs = [{"name": each["name"]} for each in found["outputs"]]
    answer = client.post(
        "/v2/models/two/infer", json={"inputs": inputs, "outputs": outputs, "parameters": {"passes": 7}}
    )
    served = {each["name"]: each for each in answer.json()["outputs"]}
    assert list(served) == [each["name"] for each in found["outputs"]]
    for each in found["outputs"]:
        own = served[each["name"]]
        assert own["datatype"] == each["datatype"]
        assert all(want in (-1, got) for want, got in zip(each["shape"], own["shape"], strict=True))
        assert np.prod(own["shape"]) == len(own["data"])


def test_mean_and_variance_come_unasked_and_the_rest_on_request(client: TestClient) -> None:
    assert [each["name"] for each in infer(client).json()["outputs"]] == ["mean", "variance"]
    asked = infer(client, outputs=[{"name": "quantile_0.5"}, {"name": "samples"}], parameters={"passes": 9}).json()
    assert [(each["name"], each["shape"]) for each in asked["outputs"]] == [
        ("quantile_0.5", [2, 1]),
        ("samples", [2, 9, 1]),
    ]


def test_it_answers_what_predict_answers(client: TestClient) -> None:
    ours = client.post("/predict", json={"model": "line", "inputs": ROWS}).json()
    theirs = {each["name"]: each["data"] for each in infer(client).json()["outputs"]}
    assert theirs["variance"] == [value for row in ours["variance"] for value in row]


@pytest.mark.parametrize("more", [[], ["measure.standard_error", "classes.quantile_0.9"]])
def test_quantities_as_a_parameter_ask_for_all_that_predict_answers(client: TestClient, more: list[str]) -> None:
    inputs = {"tokens": [[1, 2, 3, 4, 5]], "features": [[0.5, -0.5]]}
    ours = client.post("/predict", json={"model": "two", "inputs": inputs, "quantities": more}).json()
    tensors = [
        {"name": "tokens", "datatype": "INT64", "shape": [1, 5], "data": inputs["tokens"]},
        {"name": "features", "datatype": "FP32", "shape": [1, 2], "data": inputs["features"]},
    ]
    asked = {"inputs": tensors, "parameters": {"quantities": ",".join(more)}}
    theirs = client.post("/v2/models/two/infer", json=asked).json()["outputs"]

    wanted = {f"{output}.{name}" for name, found in ours.items() if isinstance(found, dict) for output in found}
    assert {each["name"] for each in theirs} == {name for name in wanted if not name.endswith(".noise")}


def test_metadata_says_which_version_it_describes_and_tells_networks_apart(client: TestClient) -> None:
    first, last = (client.get(f"/v2/models/line{path}").json() for path in ("/versions/1", ""))
    assert (first["version"], last["version"]) == ("1", "2")
    assert len(first["fingerprint"]) == 64
    assert first["operations"] > 0


def test_a_version_may_be_named_in_the_query_too_as_the_document_says(client: TestClient) -> None:
    assert client.get("/v2/models/line?version=1").json()["version"] == "1"
    assert client.get("/v2/models/line").json()["version"] == "2"
    assert client.get("/v2/models/line?version=9").status_code == 404


def test_products_in_bfloat16_are_a_parameter(client: TestClient) -> None:
    found = infer(client, parameters={"precision": "bfloat16"}).json()
    ours = client.post("/predict", json={"model": "line", "inputs": ROWS, "precision": "bfloat16"}).json()

    assert "bfloat16" in found["parameters"]["notes"]
    assert found["outputs"][0]["data"] == [value for row in ours["mean"] for value in row]


def binary(header: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    text = json.dumps(header).encode()
    return {"content": b"".join([text, *tensors]), "headers": {LENGTH: str(len(text))}}


def test_binary_tensors_follow_in_the_order_that_declares_them(client: TestClient) -> None:
    raw = np.array(ROWS, dtype="<f4").tobytes()
    given = {"name": "input", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": len(raw)}}
    outputs = [{"name": "variance", "parameters": {"binary_data": True}}, {"name": "mean"},
               {"name": "deterministic", "parameters": {"binary_data": True}}]  # fmt: skip
    answer = client.post("/v2/models/line/infer", **binary({"inputs": [given], "outputs": outputs}, raw))
    length = int(answer.headers[LENGTH])
    header, tail = json.loads(answer.content[:length]), answer.content[length:]
    assert answer.headers["content-type"] == "application/octet-stream"
    assert [each.get("parameters", {}).get("binary_data_size") for each in header["outputs"]] == [8, None, 8]
    plain = {each["name"]: each["data"] for each in infer(client).json()["outputs"]}
    np.testing.assert_allclose(np.frombuffer(tail[:8], "<f4"), plain["variance"], rtol=1e-6)
    assert len(tail) == 16


@pytest.mark.parametrize("length", ["-1", "x", "100000", "1e3", ""])
def test_a_header_length_that_is_none_is_refused(client: TestClient, length: str) -> None:
    answer = client.post("/v2/models/line/infer", content=b"{}", headers={LENGTH: length})
    assert answer.status_code == 400
    assert f"{LENGTH} is {length!r}" in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": ROWS, "shape": [2, 4]}, "the data has the shape [2, 3], `shape` says [2, 4]"),
        ({"shape": [3, 2]}, "`shape` says [3, 2]"),
        ({"shape": [1 << 40, 1 << 40]}, "`shape` says"),
        ({"shape": [-2, -3]}, "greater than or equal to 0"),
        ({"datatype": "BYTES"}, "datatype 'BYTES' cannot be served; send BOOL"),
        ({"datatype": "FP8"}, "cannot be served"),
        ({"datatype": "FP16"}, "FP16 has no JSON form"),
        ({"datatype": "INT32"}, "INT32 takes whole numbers"),
        ({"datatype": "UINT8", "data": [[1, 2, 3], [4, 5, 256]]}, "outside of UINT8"),
        ({"datatype": "BOOL", "data": [[1, 0, 2], [0, 0, 0]]}, "outside of BOOL"),
        ({"data": None}, "neither `data` nor the parameter `binary_data_size`"),
        ({"parameters": {"binary_data_size": 24}}, "both `data` and `binary_data_size`"),
        ({"data": None, "parameters": {"binary_data_size": 24}}, "binary_data_size = 24, and 0 bytes are left"),
        ({"data": [["a", 0, 0], [0, 0, 0]]}, 'at [0, 0] is "a", not a number'),
        ({"name": "wrong"}, "missing: ['input'], unknown: ['wrong']"),
        ({"sahpe": [1]}, "is not known"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(client: TestClient, change: dict[str, Any], told: str) -> None:
    answer = infer(client, inputs=[{**GIVEN, **change}])
    assert answer.status_code == 400
    assert told in answer.json()["error"]


def test_an_input_given_twice_and_bytes_left_over_are_refused(client: TestClient) -> None:
    assert "given twice" in infer(client, inputs=[GIVEN, GIVEN]).json()["error"]
    answer = client.post("/v2/models/line/infer", **binary({"inputs": [GIVEN]}, b"rest"))
    assert "4 bytes follow the last tensor" in answer.json()["error"]


def test_an_output_that_is_not_there_is_told_those_that_are(client: TestClient) -> None:
    assert "has no quantity 'entropy'; it has mean" in infer(client, outputs=[{"name": "entropy"}]).json()["error"]


def test_bfloat16_travels_in_binary(client: TestClient) -> None:
    raw = torch.tensor(ROWS).bfloat16().view(torch.int16).numpy().tobytes()
    given = {"name": "input", "datatype": "BF16", "shape": [2, 3], "parameters": {"binary_data_size": len(raw)}}
    answer = client.post("/v2/models/line/infer", **binary({"inputs": [given]}, raw)).json()
    reference = infer(client).json()
    assert answer["outputs"][0]["data"] == pytest.approx(reference["outputs"][0]["data"], rel=0.05)


def test_the_estimator_is_a_parameter_and_is_told(client: TestClient) -> None:
    found = infer(client, parameters={"estimator": "integrated", "passes": 2}).json()
    assert found["parameters"]["estimator"] == "integrated"
    assert infer(client, parameters={"passes": 2}).json()["parameters"]["estimator"] == "sampled"


def test_a_tolerance_is_a_parameter_and_what_it_reached_are_tensors(client: TestClient) -> None:
    found = {each["name"]: each for each in infer(client, parameters={"tolerance": 0.3}).json()["outputs"]}
    assert list(found) == ["mean", "variance", "variance_error", "passes_used"]
    assert (found["passes_used"]["datatype"], found["passes_used"]["shape"]) == ("INT64", [2])
    told = {each["name"]: each for each in client.get("/v2/models/line").json()["outputs"]}
    assert (told["passes_used"]["datatype"], told["passes_used"]["shape"]) == ("INT64", [-1])
    assert told["variance_error"]["shape"] == [-1, 1]
