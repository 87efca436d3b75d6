"""One test for each clause of the Open Inference Protocol (REST) and its binary tensor extension; the id is the clause.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md, and Triton's extension documents.
"""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import pytest

LENGTH = "Inference-Header-Content-Length"
ROWS = [[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]]
GIVEN = {"name": "input", "datatype": "FP32", "shape": [2, 3], "data": ROWS}
RAW = np.array(ROWS, dtype="<f4").tobytes()
DECLARED = {"name": "input", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": len(RAW)}}
Check = Callable[[httpx2.Client], None]
CLAUSES: dict[str, Check] = {}
PATHS = ("/v2/models/line", "/v2/models/line/versions/1")


def clause(name: str) -> Callable[[Check], Check]:
    def keep(check: Check) -> Check:
        assert name not in CLAUSES
        CLAUSES[name] = check
        return check

    return keep


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    with httpx2.Client(base_url=address, timeout=30) as found:
        yield found


def told(answer: httpx2.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def infer(client: httpx2.Client, status: int = 200, model: str = "line", **body: Any) -> Any:
    return told(client.post(f"/v2/models/{model}/infer", json={"inputs": [GIVEN], **body}), status)


def send(client: httpx2.Client, header: dict[str, Any], raw: bytes = b"", **headers: str) -> httpx2.Response:
    text = json.dumps(header).encode()
    return client.post("/v2/models/line/infer", content=text + raw, headers={LENGTH: str(len(text)), **headers})


def refused(answer: httpx2.Response, status: int = 400) -> str:
    body = told(answer, status)
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    assert body["error"]
    return str(body["error"])


def tensors(answer: httpx2.Response) -> dict[str, np.ndarray]:
    """Return a binary answer's tensors, taken apart as the extension says."""
    length = int(answer.headers[LENGTH])
    rest, found = answer.content[length:], {}
    for each in json.loads(answer.content[:length])["outputs"]:
        if "data" in each:
            found[each["name"]] = np.array(each["data"], dtype="<f4").reshape(each["shape"])
        else:
            size = each["parameters"]["binary_data_size"]
            found[each["name"]] = np.frombuffer(rest[:size], "<f4").reshape(each["shape"])
            rest = rest[size:]
    assert not rest
    return found


@clause("health: GET v2/health/live is 200 while the server runs")
def _(client: httpx2.Client) -> None:
    assert told(client.get("/v2/health/live")) == {"live": True}


@clause("health: GET v2/health/ready is 200 when all models are ready")
def _(client: httpx2.Client) -> None:
    assert told(client.get("/v2/health/ready")) == {"ready": True}


@clause("health: GET v2/models/{name}/ready tells name and ready")
def _(client: httpx2.Client) -> None:
    assert told(client.get("/v2/models/line/ready")) == {"name": "line", "ready": True}


@clause("health: GET v2/models/{name}/versions/{version}/ready tells name and ready")
def _(client: httpx2.Client) -> None:
    assert told(client.get("/v2/models/line/versions/1/ready")) == {"name": "line", "ready": True}


@clause("health: a model that is not there is not ready")
def _(client: httpx2.Client) -> None:
    refused(client.get("/v2/models/nobody/ready"), 404)
    refused(client.get("/v2/models/line/versions/9/ready"), 404)


@clause("server metadata: GET v2 has name, version and extensions")
def _(client: httpx2.Client) -> None:
    found = told(client.get("/v2"))
    assert set(found) == {"name", "version", "extensions"}
    assert all(isinstance(each, str) for each in (found["name"], found["version"], *found["extensions"]))


@clause("server metadata: GET v2/ is the same, without a redirect")
def _(client: httpx2.Client) -> None:
    assert told(client.get("/v2/", follow_redirects=False)) == told(client.get("/v2"))


@clause("model metadata: name, versions, platform, inputs, outputs")
def _(client: httpx2.Client) -> None:
    for path in PATHS:
        found = told(client.get(path))
        assert found["name"] == "line"
        assert found["versions"] == ["1", "2"]
        assert found["platform"].startswith("pytorch_")
        assert found["inputs"]
        assert found["outputs"]


@clause("model metadata: a tensor has name, datatype, and a shape with -1 where it varies")
def _(client: httpx2.Client) -> None:
    found = told(client.get("/v2/models/two"))
    for each in (*found["inputs"], *found["outputs"]):
        assert isinstance(each["name"], str)
        assert each["datatype"] in ("FP32", "INT64")
        assert each["shape"][0] == -1
        assert all(isinstance(size, int) and size >= -1 for size in each["shape"])


@clause("model metadata: a model or version that is not there is an error object")
def _(client: httpx2.Client) -> None:
    refused(client.get("/v2/models/nobody"), 404)
    refused(client.get("/v2/models/line/versions/9"), 404)


@clause("model list: GET v2/models names them, as KServe does")
def _(client: httpx2.Client) -> None:
    assert told(client.get("/v2/models")) == {"models": ["line", "overflowing", "plain", "two"]}


@clause("inference: POST v2/models/{name}/infer answers model_name, model_version, outputs")
def _(client: httpx2.Client) -> None:
    found = infer(client)
    assert found["model_name"] == "line"
    assert isinstance(found["model_version"], str)
    assert isinstance(found["outputs"], list)


@clause("inference: without a version the server chooses one")
def _(client: httpx2.Client) -> None:
    assert infer(client)["model_version"] == "2"


@clause("inference: a version in the path is the one that answers")
def _(client: httpx2.Client) -> None:
    body = {"inputs": [GIVEN]}
    assert told(client.post("/v2/models/line/versions/1/infer", json=body))["model_version"] == "1"
    refused(client.post("/v2/models/line/versions/9/infer", json=body), 404)


@clause("inference: an id is returned")
def _(client: httpx2.Client) -> None:
    assert infer(client, id="a b/c")["id"] == "a b/c"


@clause("inference: without an id none need be returned")
def _(client: httpx2.Client) -> None:
    assert "id" not in infer(client)


@clause("inference: an id is a string")
def _(client: httpx2.Client) -> None:
    refused(client.post("/v2/models/line/infer", json={"inputs": [GIVEN], "id": 7}))


@clause("inference: a model_name that repeats the path's is taken, as KServe's client sends it, another is an error")
def _(client: httpx2.Client) -> None:
    assert infer(client, model_name="line")["outputs"] == infer(client)["outputs"]
    refused(client.post("/v2/models/line/infer", json={"inputs": [GIVEN], "model_name": "two"}))


@clause("inference: parameters are strings, numbers and booleans")
def _(client: httpx2.Client) -> None:
    assert infer(client, parameters={"passes": 7, "variant": "trained", "p": 0.5})["parameters"]["passes"] == 7
    for value in ([1], {"a": 1}, None):
        refused(client.post("/v2/models/line/infer", json={"inputs": [GIVEN], "parameters": {"passes": value}}))


@clause("inference: the answer's parameters are strings, numbers and booleans")
def _(client: httpx2.Client) -> None:
    assert all(isinstance(value, (str, int, float, bool)) for value in infer(client)["parameters"].values())


@clause("inference: inputs are required")
def _(client: httpx2.Client) -> None:
    refused(client.post("/v2/models/line/infer", json={}))
    refused(client.post("/v2/models/line/infer", json={"inputs": []}))


@clause("inference: name, shape and datatype of an input are required")
def _(client: httpx2.Client) -> None:
    for field in ("name", "shape", "datatype", "data"):
        tensor = {key: value for key, value in GIVEN.items() if key != field}
        refused(client.post("/v2/models/line/infer", json={"inputs": [tensor]}))


@clause("inference: a shape holds whole numbers that are not negative")
def _(client: httpx2.Client) -> None:
    for shape in ([-2, -3], [2.0, 3.0], ["2", "3"], [True, 6], 6, None):
        refused(client.post("/v2/models/line/infer", json={"inputs": [{**GIVEN, "shape": shape}]}))


@clause("inference: a shape that holds nothing in more places than there are is an error")
def _(client: httpx2.Client) -> None:
    for shape in ([0, 3036988296, 3037012704], [0, 1 << 63], [0, 1 << 70], [1 << 40, 0, 1 << 40]):
        refused(send(client, {"inputs": [{**DECLARED, "shape": shape, "parameters": {"binary_data_size": 0}}]}))
        refused(client.post("/v2/models/line/infer", json={"inputs": [{**GIVEN, "shape": shape, "data": []}]}))


@clause("inference: the first axis is the batch, answered row by row")
def _(client: httpx2.Client) -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": [5, 3], "data": [0.5] * 15}
    assert all(each["shape"] == [5, 1] for each in infer(client, inputs=[tensor])["outputs"])


@clause("inference: outputs left out are all outputs with their defaults")
def _(client: httpx2.Client) -> None:
    assert [each["name"] for each in infer(client)["outputs"]] == ["mean", "variance"]


@clause("inference: outputs named are those answered, in that order")
def _(client: httpx2.Client) -> None:
    asked = [{"name": "variance"}, {"name": "standard_error"}, {"name": "mean"}]
    assert [each["name"] for each in infer(client, outputs=asked)["outputs"]] == [each["name"] for each in asked]


@clause("inference: an output that is not there is an error")
def _(client: httpx2.Client) -> None:
    refused(client.post("/v2/models/line/infer", json={"inputs": [GIVEN], "outputs": [{"name": "nothing"}]}))


@clause("inference: an output has name, shape, datatype and data")
def _(client: httpx2.Client) -> None:
    for each in infer(client)["outputs"]:
        assert set(each) == {"name", "shape", "datatype", "data"}
        assert len(each["data"]) == np.prod(each["shape"])


@clause("tensor data: nested in the tensor's shape")
def _(client: httpx2.Client) -> None:
    assert infer(client, inputs=[GIVEN])["outputs"]


@clause("tensor data: flat in row-major order, the same")
def _(client: httpx2.Client) -> None:
    flat = {**GIVEN, "data": [value for row in ROWS for value in row]}
    assert infer(client, inputs=[flat])["outputs"] == infer(client)["outputs"]


@clause("tensor data: of another shape than said is an error")
def _(client: httpx2.Client) -> None:
    for data in ([ROWS[0]], [[0.1, 0.2], [0.3]], [0.1] * 5, "text", {}, [["a", "b", "c"]] * 2):
        refused(client.post("/v2/models/line/infer", json={"inputs": [{**GIVEN, "data": data}]}))


@clause("tensor data: a model's inputs are each given once")
def _(client: httpx2.Client) -> None:
    for inputs in ([GIVEN, GIVEN], [{**GIVEN, "name": "other"}], [GIVEN, {**GIVEN, "name": "other"}]):
        refused(client.post("/v2/models/line/infer", json={"inputs": inputs}))


@clause("datatypes: real and whole ones are read as JSON")
def _(client: httpx2.Client) -> None:
    for datatype in ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64"):
        tensor = {"name": "input", "datatype": datatype, "shape": [1, 3], "data": [[1, 0, 1]]}
        assert infer(client, inputs=[tensor])["outputs"][0]["datatype"] == "FP32"


@clause("datatypes: BOOL is true and false")
def _(client: httpx2.Client) -> None:
    tensor = {"name": "input", "datatype": "BOOL", "shape": [1, 3], "data": [[True, False, True]]}
    numbers = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [[1, 0, 1]]}
    assert infer(client, inputs=[tensor])["outputs"] == infer(client, inputs=[numbers])["outputs"]


@clause("datatypes: FP16 and BF16 have no JSON form")
def _(client: httpx2.Client) -> None:
    for datatype in ("FP16", "BF16"):
        refused(client.post("/v2/models/line/infer", json={"inputs": [{**GIVEN, "datatype": datatype}]}))


@clause("datatypes: an unknown one, and BYTES where numbers are taken, is an error")
def _(client: httpx2.Client) -> None:
    for datatype in ("BYTES", "FP8", "fp32", ""):
        refused(client.post("/v2/models/line/infer", json={"inputs": [{**GIVEN, "datatype": datatype}]}))


@clause("errors: an object with one string `error`, whatever is wrong")
def _(client: httpx2.Client) -> None:
    refused(client.post("/v2/models/line/infer", content=b"{"))
    refused(client.post("/v2/models/line/infer", content=b"[]"))
    refused(client.post("/v2/models/nobody/infer", json={"inputs": [GIVEN]}), 404)
    refused(client.get("/v2/nowhere"), 404)
    refused(client.get("/v2/models/line/infer"), 405)
    refused(client.put("/v2/models/line/infer", json={}), 405)


@clause("errors: a client that sends no Content-Type is served, as tritonclient does")
def _(client: httpx2.Client) -> None:
    request = client.build_request("POST", "/v2/models/line/infer", content=json.dumps({"inputs": [GIVEN]}).encode())
    request.headers.pop("content-type", None)
    assert client.send(request).status_code == 200


@clause("binary: the extension is reported as binary_tensor_data")
def _(client: httpx2.Client) -> None:
    assert "binary_tensor_data" in told(client.get("/v2"))["extensions"]


@clause("binary: an input's bytes follow the JSON, whose length the header tells")
def _(client: httpx2.Client) -> None:
    assert told(send(client, {"inputs": [DECLARED]}, RAW))["outputs"] == infer(client)["outputs"]


@clause("binary: JSON and binary inputs mix, bytes in the order that declares them")
def _(client: httpx2.Client) -> None:
    tokens, features = np.array([[1, 2, 3, 4, 5]]), np.array([[0.5, -0.5]], dtype="<f4")
    first = {"name": "features", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    second = {"name": "tokens", "datatype": "INT64", "shape": [1, 5], "parameters": {"binary_data_size": 40}}
    text = json.dumps({"inputs": [first, second]}).encode()
    body = text + features.tobytes() + tokens.astype("<i8").tobytes()
    binary = told(client.post("/v2/models/two/infer", content=body, headers={LENGTH: str(len(text))}))
    plain = [
        {"name": "tokens", "datatype": "INT64", "shape": [1, 5], "data": tokens.tolist()},
        {"name": "features", "datatype": "FP32", "shape": [1, 2], "data": features.tolist()},
    ]
    assert infer(client, model="two", inputs=plain)["outputs"] == binary["outputs"]


@clause("binary: binary_data of an output asks for its bytes")
def _(client: httpx2.Client) -> None:
    asked = [{"name": "mean", "parameters": {"binary_data": True}}, {"name": "variance"}]
    answer = send(client, {"inputs": [GIVEN], "outputs": asked})
    plain = {each["name"]: each["data"] for each in infer(client)["outputs"]}
    for name, values in tensors(answer).items():
        np.testing.assert_allclose(values.ravel(), plain[name], rtol=1e-6)


@clause("binary: binary_data_output asks for the bytes of all, an output's own word counts more")
def _(client: httpx2.Client) -> None:
    every = {"binary_data_output": True}
    header = json.loads(_header(send(client, {"inputs": [GIVEN], "parameters": every})))
    assert all("data" not in each for each in header["outputs"])
    own = [{"name": "mean", "parameters": {"binary_data": False}}, {"name": "variance"}]
    header = json.loads(_header(send(client, {"inputs": [GIVEN], "parameters": every, "outputs": own})))
    assert ["data" in each for each in header["outputs"]] == [True, False]


def _header(answer: httpx2.Response) -> bytes:
    return answer.content[: int(answer.headers[LENGTH])]


@clause("binary: an answer with bytes is an octet stream that tells its JSON's length")
def _(client: httpx2.Client) -> None:
    answer = send(client, {"inputs": [GIVEN], "parameters": {"binary_data_output": True}})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert int(answer.headers["content-length"]) == len(answer.content)
    sizes = [each["parameters"]["binary_data_size"] for each in json.loads(_header(answer))["outputs"]]
    assert int(answer.headers[LENGTH]) + sum(sizes) == len(answer.content)


@clause("binary: little-endian, row-major, without padding")
def _(client: httpx2.Client) -> None:
    found = tensors(send(client, {"inputs": [DECLARED], "parameters": {"binary_data_output": True}}, RAW))
    plain = {each["name"]: each["data"] for each in infer(client)["outputs"]}
    np.testing.assert_allclose(found["mean"].ravel(), plain["mean"], rtol=1e-6)


@clause("binary: FP16 and BF16 travel as bytes")
def _(client: httpx2.Client) -> None:
    raw = np.array(ROWS, dtype="<f2").tobytes()
    tensor = {"name": "input", "datatype": "FP16", "shape": [2, 3], "parameters": {"binary_data_size": len(raw)}}
    found = told(send(client, {"inputs": [tensor]}, raw))["outputs"][0]["data"]
    np.testing.assert_allclose(found, infer(client)["outputs"][0]["data"], rtol=1e-2)
    assert told(send(client, {"inputs": [{**tensor, "datatype": "BF16"}]}, raw))["outputs"]


@clause("binary: both data and binary_data_size, or neither, is an error")
def _(client: httpx2.Client) -> None:
    refused(send(client, {"inputs": [{**DECLARED, "data": ROWS}]}, RAW))
    refused(send(client, {"inputs": [{**DECLARED, "parameters": {}}]}, RAW))


@clause("binary: a size that is not the tensor's, or not there, is an error")
def _(client: httpx2.Client) -> None:
    for size in (0, 23, 25, 1 << 40, -1, "24", 24.0, True):
        refused(send(client, {"inputs": [{**DECLARED, "parameters": {"binary_data_size": size}}]}, RAW))
    refused(send(client, {"inputs": [DECLARED]}, RAW[:-1]))
    refused(send(client, {"inputs": [DECLARED]}, RAW + b"1234"))


@clause("binary: a header length that is no length of the body is an error")
def _(client: httpx2.Client) -> None:
    for length in ("-1", "x", "1e3", "99999", "1"):
        refused(send(client, {"inputs": [DECLARED]}, RAW, **{LENGTH: length}))


@clause("binary: a header length of 0 is the only input's raw bytes, answered in bytes")
def _(client: httpx2.Client) -> None:
    answer = client.post("/v2/models/line/infer", content=RAW[:12], headers={LENGTH: "0"})
    assert {name: values.shape for name, values in tensors(answer).items()} == {"mean": (1, 1), "variance": (1, 1)}
    assert "one input" in refused(client.post("/v2/models/two/infer", content=RAW, headers={LENGTH: "0"}))


@clause("binary: values that are no numbers in JSON are exact in bytes")
def _(client: httpx2.Client) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 0.0]}
    body = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    answer = client.post("/v2/models/overflowing/infer", json=body)
    assert not np.isfinite(tensors(answer)["mean"]).all()
    assert "not finite" in json.loads(_header(answer))["parameters"]["notes"]


@clause("compression: gzip and deflate (zlib) bodies, the header's length that of the unpacked JSON")
def _(client: httpx2.Client) -> None:
    text = json.dumps({"inputs": [DECLARED]}).encode()
    for name, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        headers = {LENGTH: str(len(text)), "Content-Encoding": name}
        answer = client.post("/v2/models/line/infer", content=pack(text + RAW), headers=headers)
        assert told(answer)["outputs"] == infer(client)["outputs"]


@clause("compression: another encoding, or a body that is not what it says, is an error")
def _(client: httpx2.Client) -> None:
    for name in ("br", "zstd", "gzip"):
        refused(client.post("/v2/models/line/infer", content=b"{}", headers={"Content-Encoding": name}))


@clause("parameters: those that Triton's client reserves are taken")
def _(client: httpx2.Client) -> None:
    reserved = {"sequence_id": 1, "sequence_start": True, "sequence_end": False, "priority": 1, "triton_x": "y"}
    assert infer(client, parameters=reserved)["outputs"]


@clause("parameters: an unknown one is an error, not ignored")
def _(client: httpx2.Client) -> None:
    refused(client.post("/v2/models/line/infer", json={"inputs": [GIVEN], "parameters": {"walks": 1}}))


@clause("names: a model's name is quoted into the path")
def _(client: httpx2.Client) -> None:
    assert client.get("/v2/models/%6Cine").status_code == 200
    refused(client.get("/v2/models/..%2F..%2Fetc"), 404)


@pytest.mark.parametrize("check", list(CLAUSES.values()), ids=list(CLAUSES))
def test_clause(client: httpx2.Client, check: Check) -> None:
    check(client)
