"""Whatever is sent over a real socket is answered in time: a success, or a JSON error that blames the request."""

import gzip
import json
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from process import Served
from sizes import Sizes

LENGTH = "Inference-Header-Content-Length"
BLAMED = (400, 404, 405, 406, 411, 413, 415, 422, 429)
ANSWERED_S = 10.0


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served.address, timeout=ANSWERED_S) as found:
        yield found


def check(status: int, body: bytes, took_s: float) -> None:
    """Check what came back: no fault of the server's, nothing of its inside, in time, told as every error is."""
    assert status == 200 or 300 <= status < 400 or status in BLAMED, (status, body[:500])
    assert b"Traceback" not in body
    assert b'.py"' not in body
    assert took_s < ANSWERED_S
    if status in BLAMED and body:
        assert list(json.loads(body)) == ["error"], body[:500]


def many(cases: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def test_every_operation_of_the_document_survives_its_own_fuzzer(served: Served, sizes: Sizes) -> None:
    """Questions that the document allows and ones that it does not, of every operation."""
    schema = schemathesis.openapi.from_url(f"{served.address}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 10
    asked = 0
    for operation in operations:
        count = sizes.cases if operation.method.upper() == "POST" else max(sizes.cases // 20, 3)

        @many(count)
        @given(case=operation.as_strategy())
        def survives(case: Any) -> None:
            nonlocal asked
            began = time.perf_counter()
            answer = case.call(timeout=ANSWERED_S)
            check(answer.status_code, answer.content, time.perf_counter() - began)
            asked += 1

        survives()
    print(f"\n{asked} cases over {len(operations)} operations")


whole = st.integers(-2, 1 << 64) | st.integers(0, 40)
scalars = st.none() | st.booleans() | whole | st.floats() | st.text(max_size=6)
datatypes = st.sampled_from(["FP32", "FP64", "FP16", "BF16", "INT64", "INT32", "UINT8", "BOOL", "BYTES", "FP8"])
shapes = st.sampled_from([[1, 3], [2, 3], [1, 2], [1, 5], [0, 3], [3]]) | st.lists(whole, max_size=4)
SIZES = {"FP32": 4, "FP64": 8, "FP16": 2, "BF16": 2, "INT64": 8, "INT32": 4, "UINT8": 1, "BOOL": 1}


FAULTS = (
    *("tensor", "declared", "names", "parameters", "outputs", "places"),
    *("length", "no length", "splice", "packing", "cut"),
)
RIGHT = {
    "line": [("input", "FP32", [1, 3])],
    "two": [("tokens", "INT64", [1, 5]), ("features", "FP32", [1, 2])],
    "overflowing": [("x", "FP32", [1, 2])],
}
PARAMETERS = ("passes", "seed", "scope", "p", "variant", "tolerance", "estimator", "sites", "binary_data_output", "x")
OUTPUTS = ("mean", "variance", "samples", "quantile_0.5", "classes.entropy", "nothing")
PACKERS = {"gzip": gzip.compress, "deflate": zlib.compress}


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, bytes, dict[str, str]]:
    """Draw a model and a binary body for it with up to three things wrong."""
    faults = draw(st.sets(st.sampled_from(FAULTS), max_size=3))
    model = draw(st.sampled_from(list(RIGHT)))
    wanted = RIGHT[draw(st.sampled_from(list(RIGHT)))] * 2 if "names" in faults else RIGHT[model]
    tensors, raw = [], b""
    for name, datatype, shape in wanted:
        if "tensor" in faults:
            datatype, shape = draw(datatypes), draw(shapes)
        need = SIZES.get(datatype, 4)
        for size in shape:
            need = min(max(need * size, 0), 4096)
        own = draw(
            st.binary(min_size=need, max_size=need) if datatype != "INT64" else _places(need, "places" in faults)
        )
        raw += own
        parameters = {"binary_data_size": draw(scalars) if "declared" in faults else len(own)}
        tensors.append({"name": name, "shape": shape, "datatype": datatype, "parameters": parameters})
    own_parameters: dict[str, Any] = {"passes": 3, "binary_data_output": draw(st.booleans())}
    if "parameters" in faults:
        own_parameters |= draw(st.dictionaries(st.sampled_from(PARAMETERS), scalars, max_size=3))
    names = draw(st.lists(st.sampled_from(OUTPUTS), max_size=3)) if "outputs" in faults else []
    outputs = [{"name": each, "parameters": {"binary_data": draw(st.booleans())}} for each in names]
    header = json.dumps({"inputs": tensors, "parameters": own_parameters, "outputs": outputs}).encode()
    return model, *_packed(draw, faults, header, raw)


def _places(size: int, wrong: bool) -> st.SearchStrategy[bytes]:
    """Whole numbers of 64 bits, all of them in the table of seven places unless they are to be wrong."""
    number = st.integers(-2, 9) if wrong else st.integers(0, 6)
    return st.lists(number, min_size=size // 8, max_size=size // 8).map(
        lambda found: struct.pack(f"<{len(found)}q", *found)
    )


def _packed(draw: st.DrawFn, faults: set[str], header: bytes, raw: bytes) -> tuple[bytes, dict[str, str]]:
    body = header + raw
    length = draw(st.text("0123456789-+ e_.x", max_size=22).map(str.strip)) if "length" in faults else str(len(header))
    headers = {} if "no length" in faults else {LENGTH: length}
    if "splice" in faults:
        place = draw(st.integers(0, len(body)))
        body = body[:place] + draw(st.binary(max_size=8)) + body[place + draw(st.integers(0, 8)) :]
    packing = draw(st.sampled_from(["", "gzip", "deflate"]))
    body = PACKERS.get(packing, bytes)(body)
    if "packing" in faults:
        packing = draw(st.sampled_from(["", "gzip", "deflate", "br", "gzip, gzip"]))
    if "cut" in faults:
        body = body[: draw(st.integers(0, len(body)))]
    return body, headers | ({"Content-Encoding": packing} if packing else {})


def test_every_binary_body_is_answered_or_blamed(client: httpx2.Client, sizes: Sizes) -> None:
    statuses: Counter[int] = Counter()

    @many(2 * sizes.cases)
    @given(message=messages())
    def survives(message: tuple[str, bytes, dict[str, str]]) -> None:
        model, body, headers = message
        began = time.perf_counter()
        answer = client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
        check(answer.status_code, answer.content, time.perf_counter() - began)
        statuses[answer.status_code] += 1

    survives()
    print(f"\nanswers by status: {dict(statuses)}")
    assert statuses[200] > 0.1 * sizes.cases, "the fuzzer no longer finds what is right"


def test_the_server_is_as_ready_as_before(client: httpx2.Client) -> None:
    assert client.get("/v2/health/ready").status_code == 200
    assert client.post("/predict", json={"model": "line", "inputs": [[1, 2, 3]]}).status_code == 200
