"""The stock tritonclient[http], unchanged, against a running server: JSON and binary, plain and packed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

ROWS = np.array([[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]], dtype=np.float32)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    found = triton.InferenceServerClient(address.removeprefix("http://"))
    yield found
    found.close()


def given(name: str, values: np.ndarray, datatype: str, *, binary: bool = True) -> Any:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def test_the_server_and_its_models_are_live_ready_and_described(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("line")
    assert client.is_model_ready("line", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    described = client.get_model_metadata("two", "1")
    assert described["name"] == "two"
    assert [each["datatype"] for each in described["inputs"]] == ["INT64", "FP32"]
    assert {"name": "classes.mean", "datatype": "FP32", "shape": [-1, 3]} in described["outputs"]


def test_its_defaults_work_binary_both_ways(client: Any) -> None:
    """With no outputs named it asks for all of them in binary."""
    answer = client.infer("line", [given("input", ROWS, "FP32")])
    assert answer.as_numpy("mean").shape == (2, 1)
    assert (answer.as_numpy("variance") > 0).all()
    assert answer.get_output("mean")["parameters"]["binary_data_size"] == 8


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_json_and_binary_packed_and_plain_agree(
    client: Any, binary_in: bool, binary_out: bool, packing: str | None
) -> None:
    reference = client.infer("line", [given("input", ROWS, "FP32")], parameters={"passes": 20, "seed": 3})
    answer = client.infer(
        "line",
        [given("input", ROWS, "FP32", binary=binary_in)],
        outputs=[triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("variance", "mean")],
        request_id="number 7",
        parameters={"passes": 20, "seed": 3},
        request_compression_algorithm=packing,
        response_compression_algorithm=packing,
    )
    for name in ("mean", "variance"):
        np.testing.assert_allclose(answer.as_numpy(name), reference.as_numpy(name), rtol=1e-6)
    told = answer.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("number 7", "line", "2")
    assert told["parameters"] == {"passes": 20, "seed": 3, "scope": "pass", "estimator": "sampled", "noise": "unknown"}


def test_several_inputs_and_outputs_mix_json_and_binary(client: Any) -> None:
    tokens, features = np.array([[1, 2, 3, 4, 5]]), np.array([[0.5, -0.5]], dtype=np.float32)
    answer = client.infer(
        "two",
        [given("tokens", tokens, "INT64", binary=False), given("features", features, "FP32")],
        outputs=[
            triton.InferRequestedOutput("classes.entropy", binary_data=False),
            triton.InferRequestedOutput("classes.label", binary_data=True),
            triton.InferRequestedOutput("measure.quantile_0.9", binary_data=True),
        ],
        model_version="1",
    )
    assert answer.as_numpy("classes.entropy").shape == (1,)
    assert answer.as_numpy("classes.label").dtype == np.int64
    assert answer.as_numpy("measure.quantile_0.9").shape == (1, 1)


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("BOOL", bool), ("UINT8", np.uint8), ("UINT16", np.uint16), ("UINT32", np.uint32), ("UINT64", np.uint64),
        ("INT8", np.int8), ("INT16", np.int16), ("INT32", np.int32), ("INT64", np.int64),
    ],
)  # fmt: skip
@pytest.mark.parametrize("binary", [True, False])
def test_every_whole_datatype_serves_a_whole_input(client: Any, datatype: str, dtype: Any, binary: bool) -> None:
    tokens, features = np.array([[1, 0, 1, 1, 0]]).astype(dtype), np.array([[0.5, -0.5]], dtype=np.float32)
    answer = client.infer(
        "two", [given("tokens", tokens, datatype, binary=binary), given("features", features, "FP32")]
    )
    reference = client.infer(
        "two", [given("tokens", tokens.astype(np.int64), "INT64"), given("features", features, "FP32")]
    )
    np.testing.assert_array_equal(answer.as_numpy("classes.mean"), reference.as_numpy("classes.mean"))


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64)])
def test_every_real_datatype_serves_a_real_input(client: Any, datatype: str, dtype: Any) -> None:
    answer = client.infer("line", [given("input", ROWS.astype(dtype), datatype)])
    reference = client.infer("line", [given("input", ROWS, "FP32")])
    np.testing.assert_allclose(answer.as_numpy("mean"), reference.as_numpy("mean"), rtol=1e-2)


@pytest.mark.parametrize(
    ("model", "parameters", "told"),
    [
        ("nobody", {}, "there is no model 'nobody'"),
        ("line", {"passes": 1}, "passes = 1"),
        ("line", {"walks": 1}, "parameter 'walks' is not known; the parameters are passes"),
        ("line", {"variant": "x"}, "there is no variant 'x'"),
        ("line", {"sites": "{"}, "not JSON"),
        ("line", {"sites": '{"1": "off"}'}, "nothing would be random"),
    ],
)
def test_its_users_read_our_messages(client: Any, model: str, parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(InferenceServerException, match=told):
        client.infer(model, [given("input", ROWS, "FP32")], parameters=parameters)


def test_a_fresh_seed_can_be_asked_for(client: Any) -> None:
    seeds = {
        client.infer("line", [given("input", ROWS, "FP32")], parameters={"seed": "fresh"}).get_response()["parameters"][
            "seed"
        ]
        for _ in range(2)
    }
    assert len(seeds) == 2
