"""Whatever is sent, the answer is a success or a JSON error that blames the request; the server goes on."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

FIELDS = (
    "model",
    "version",
    "inputs",
    "passes",
    "variant",
    "p",
    "sites",
    "seed",
    "scope",
    "row_offset",
    "estimator",
    "tolerance",
    "quantities",
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
likely = st.sampled_from(
    [
        "line",
        "two",
        1,
        2,
        50,
        0.5,
        "bernoulli",
        "trained",
        "pass",
        "row",
        ["samples"],
        {"1": 0.5},
        {"1": {"p": 0.2}},
        [[0, 1, 2]],
    ]
)
bodies = st.dictionaries(st.sampled_from(FIELDS), values | likely, max_size=6)
quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LENGTH = "Inference-Header-Content-Length"


def is_told(answer: Any) -> bool:
    if answer.status_code == 200:
        return True
    return answer.status_code in (400, 404, 413) and list(answer.json()) == ["error"] and bool(answer.json()["error"])


@quick
@given(bodies)
def test_any_object_is_answered_or_told_what_is_wrong(client: TestClient, body: dict[str, Any]) -> None:
    whole = {"model": "line", "inputs": [[0.1, 0.2, 0.3]], "passes": 5, **body}
    answer = client.post("/predict", content=json.dumps(whole).encode())
    assert is_told(answer), answer.text


@quick
@given(st.binary(max_size=64) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_told_what_is_wrong(client: TestClient, body: bytes) -> None:
    for path, headers in (("/predict", {}), ("/v2/models/line/infer", {}), ("/v2/models/line/infer", {LENGTH: "3"})):
        assert is_told(client.post(path, content=body, headers=headers))


tensors = st.fixed_dictionaries(
    {"name": st.sampled_from(["input", "x"]) | st.text(max_size=4)},
    optional={
        "shape": st.just([1, 3]) | st.lists(st.integers(-2, 1 << 62), max_size=3) | values,
        "datatype": st.sampled_from(["FP32", "INT64", "BOOL", "BF16", "BYTES"]) | scalars,
        "data": st.just([[0.1, 0.2, 0.3]]) | values,
        "parameters": st.dictionaries(st.just("binary_data_size"), scalars, max_size=1) | values,
    },
)
parameters = st.dictionaries(
    st.sampled_from(["passes", "p", "sites", "seed", "scope", "binary_data_output"]), scalars, max_size=3
)


@quick
@given(st.lists(tensors, max_size=2), parameters, st.binary(max_size=16), st.lists(values, max_size=2))
def test_any_inference_is_answered_or_told_what_is_wrong(
    client: TestClient, inputs: list[Any], parameters: dict[str, Any], raw: bytes, outputs: list[Any]
) -> None:
    header = json.dumps({"inputs": inputs, "parameters": {"passes": 5, **parameters}, "outputs": outputs}).encode()
    answer = client.post("/v2/models/line/infer", content=header + raw, headers={LENGTH: str(len(header))})
    assert is_told(answer), answer.text
