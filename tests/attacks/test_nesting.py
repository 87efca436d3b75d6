"""How deep JSON is nested is counted on its bytes, before a parser sees them."""

import json
import time
from typing import Any

import orjson
import pytest
from guarded import Serve
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.settings import Settings
from service.wire import is_deeper, parse_json


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


texts = st.text(st.sampled_from('[]{}"\\a,: \né'), max_size=8)
documents = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=40,
)


@given(documents, st.integers(0, 6), st.booleans())
def test_nesting_is_counted_as_a_parser_would(value: Any, limit: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert is_deeper(body, limit) == (depth_of(value) > limit)


def test_nesting_is_counted_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.wire._BLOCK_BYTES", 3)
    value = [[["[[[["], [[{"]": [1, '\\"[']}]]]] * 20
    body = json.dumps(value).encode()
    assert is_deeper(body, depth_of(value) - 1)
    assert not is_deeper(body, depth_of(value))


@given(st.binary(max_size=60), st.integers(0, 3))
def test_nesting_of_any_bytes_is_counted(body: bytes, limit: int) -> None:
    assert is_deeper(body, limit) in (True, False)


def test_the_parsers_own_limit_is_deeper_than_ours() -> None:
    assert orjson.loads(b"[" * 1024 + b"]" * 1024)
    with pytest.raises(orjson.JSONDecodeError, match="depth limit exceeded"):
        orjson.loads(b"[" * 1025 + b"]" * 1025)
    largest = next(each.le for each in Settings.model_fields["max_json_depth"].metadata if hasattr(each, "le"))
    assert largest < 1024


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b'"[", ['])
def test_depth_is_refused_before_it_is_parsed_and_quickly(opening: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(BadRequest, match="nested deeper than the 64 lists and objects that are read; flatten it"):
        parse_json(opening * 1_000_000)
    assert time.perf_counter() - began < 1


def test_wide_bodies_are_counted_in_a_fraction_of_their_parsing() -> None:
    body = json.dumps([[0.123456, 1.5, -2.25]] * 30_000).encode()

    def least_s(work: Any, *arguments: Any) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work(*arguments)
            times.append(time.perf_counter() - began)
        return min(times)

    assert least_s(is_deeper, body, 64) < least_s(orjson.loads, body)


@pytest.mark.parametrize("depth", [8, 20])
def test_depth_is_a_setting_on_both_protocols(serve: Serve, depth: int) -> None:
    client, deep = serve(max_json_depth=depth), "[" * depth + "1" + "]" * depth
    infer = f'{{"inputs": [{{"name": "input", "datatype": "FP32", "shape": [1, 3], "data": {deep}}}]}}'
    for path, body in (("/predict", f'{{"inputs": {deep}}}'), ("/v2/models/line/infer", infer)):
        answer = client.post(path, content=body)
        assert answer.status_code == 400
        assert f"nested deeper than the {depth}" in answer.json()["error"]


def test_brackets_in_text_and_in_raw_tensors_are_no_nesting(serve: Serve) -> None:
    client = serve()
    text = json.dumps({"inputs": [[1, 2, 3]], "variant": "[" * 100})
    assert "[[[[" in client.post("/predict", content=text).json()["error"]
    raw = b"[" * 12 * 50  # 50 rows of three floats
    header = {"name": "input", "datatype": "FP32", "shape": [50, 3], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [header]}).encode()
    answer = client.post(
        "/v2/models/line/infer", content=head + raw, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert answer.status_code == 200, answer.text
