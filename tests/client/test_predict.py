"""The client's answers are the predictor's own, number for number, whatever is asked and however it is given."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from scripted import Script, said

from service import Predictor
from service.client import AsyncClient, Client, Prediction
from service.errors import (
    BadRequest,
    DeadlineExceeded,
    InvalidInput,
    InvalidPlan,
    InvalidQuantity,
    ModelNotFound,
    NoActiveSite,
    NotFound,
    RemoteFault,
    ThinnetError,
    TooLarge,
    VersionNotFound,
)

ROWS = [[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]]
TWO = {"tokens": [[1, 2, 3, 4, 5]], "features": [[0.5, -0.5]]}


@pytest.fixture(scope="module")
def line(folder: Path) -> Predictor:
    return Predictor.load(folder / "line")


def assert_same(found: Prediction, wanted: Any) -> None:
    assert {name: list(each) for name, each in found.outputs.items()} == {
        name: list(each) for name, each in wanted.outputs.items()
    }
    for output, quantities in wanted.outputs.items():
        for name, values in quantities.items():
            np.testing.assert_allclose(found.outputs[output][name], values.numpy(), rtol=1e-6)
    assert (found.passes, found.seed, found.scope) == (wanted.passes, wanted.seed, wanted.scope)
    assert (found.estimator, found.noise, found.notes) == (wanted.estimator, wanted.noise, wanted.notes)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"passes": 20, "seed": 3, "variant": "gaussian", "p": 0.3},
        {"passes": 20, "scope": "row", "row_offset": 7},
        {"passes": 9, "sites": {"1": {"variant": "gaussian", "p": 0.3}, "input": "bernoulli"}},
        {"passes": 9, "quantities": ["samples", "quantile_0.9", "standard_error"]},
        {"estimator": "integrated"},
        {"tolerance": 0.2, "passes": 512},
        {"precision": "bfloat16", "passes": 9},
    ],
)
def test_a_prediction_is_the_predictors_own(client: Client, line: Predictor, asked: dict[str, Any]) -> None:
    import torch

    found = client.predict(ROWS, model="line", **asked)
    assert_same(found, line.predict(torch.tensor(ROWS), **asked))
    assert (found.model, found.version) == ("line", 2)


def test_several_inputs_and_outputs_go_by_name_as_in_json(client: Client, address: str) -> None:
    found = client.predict(TWO, model="two", passes=10, quantities=["measure.standard_error"])
    body = {"model": "two", "inputs": TWO, "passes": 10, "quantities": ["measure.standard_error"]}
    told = httpx2.post(f"{address}/predict", json=body).json()

    quantities = {name: value for name, value in told.items() if isinstance(value, dict) and name != "noise"}
    assert list(found.quantities) == list(quantities)
    for name, by_output in quantities.items():
        assert list(found[name]) == list(by_output)
        for output, values in by_output.items():
            if name == "label":
                assert found[name][output].tolist() == values
            else:
                np.testing.assert_allclose(found[name][output], values, rtol=1e-6)
    assert found.noise == told["noise"]


def test_a_class_is_told_by_its_name_and_kept_as_its_number(client: Client) -> None:
    found = client.predict(TWO, model="two")
    number = found.outputs["classes"]["label"]
    assert found["label"] == {"classes": np.array(["red", "green", "blue"])[number]}
    assert found.labels == {"classes": ("red", "green", "blue")}


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        np.array(ROWS),
        np.array(ROWS, ">f8"),
        np.array(ROWS, np.longdouble),
        np.asfortranarray(ROWS),
        np.array(ROWS)[:, ::-1][:, ::-1],
        {"input": ROWS},
        tuple(map(tuple, ROWS)),
    ],
    ids=["lists", "float64", "big end first", "long double", "columns first", "backwards", "by name", "tuples"],
)
def test_rows_may_be_given_in_any_form(client: Client, given: Any) -> None:
    found = client.predict(given, model="line", passes=20)
    np.testing.assert_array_equal(found.mean, client.predict(np.array(ROWS, np.float64), model="line", passes=20).mean)


class Frame:
    """What a data frame is to the client: columns by name, and an array of them."""

    def __init__(self, columns: dict[str, list[float]]) -> None:
        self._columns, self.columns = columns, list(columns)

    def __getitem__(self, names: list[str]) -> "Frame":
        return Frame({name: self._columns[name] for name in names})

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(list(self._columns.values()), dtype).T


def test_a_data_frames_columns_go_by_name(script: Script, client: Client, address: str) -> None:
    told = {**httpx2.get(f"{address}/v2/models/line").json()}
    told["inputs"][0]["features"] = ["a", "b", "c"]
    server = script(said(200, told))
    with Client(server.url, retries=0) as there:
        with pytest.raises(InvalidInput, match="takes the columns a, b, c; given: a, b, d"):
            there.predict(Frame({"a": [1], "b": [2], "d": [3]}), model="line")
        with pytest.raises(RemoteFault, match="gives no tensors"):
            there.predict(Frame({"c": [3.5], "a": [1], "b": [2]}), model="line")
    assert np.array([1, 2, 3.5]).tobytes() in server.bodies[-1]


def test_numbers_of_numpy_may_be_asked_with(client: Client) -> None:
    asked: Any = {"passes": np.int64(9), "p": np.float32(0.25), "sites": {"1": {"p": np.float64(0.5)}}}
    assert client.predict(ROWS, model="line", **asked).passes == 9


def test_an_answer_may_be_written_to(client: Client) -> None:
    mean = client.predict(ROWS, model="line").mean
    mean += 1
    assert mean.flags.aligned


def test_numbers_that_are_not_finite_come_through_and_are_told(client: Client) -> None:
    found = client.predict([[2.0, 3.0]], model="overflowing")
    assert not np.isfinite(found.mean).all()
    assert "not finite" in found.notes[0]


def test_none_asks_for_a_fresh_seed_and_default_for_the_models_own(client: Client) -> None:
    seeds = {client.predict(ROWS, model="line", passes=2, seed=None).seed for _ in range(2)}
    assert len(seeds) == 2
    assert client.predict(ROWS, model="line", passes=2, seed="default").seed == 0


def test_a_version_may_be_asked_for(client: Client) -> None:
    assert client.predict(ROWS, model="line", passes=2, version=1).version == 1
    assert client.predict(ROWS, model="line", passes=2, version="2").version == 2


def test_the_only_model_needs_no_name(folder: Path) -> None:
    from served import listening

    from service.api import create_app
    from service.repository import Repository
    from service.settings import Settings

    alone = folder / "line"
    app = create_app(Settings(models=alone), Repository(alone))
    with listening(app) as address, Client(address) as client:
        assert client.predict(ROWS, passes=2).model == "line"
        assert client.describe().name == "line"


@pytest.mark.parametrize(
    ("inputs", "asked", "error", "told"),
    [
        (ROWS, {}, ModelNotFound, "the server has 4 models, name one in `model`: line, overflowing"),
        (ROWS, {"model": "lin"}, ModelNotFound, "there is no model 'lin'"),
        (ROWS, {"model": "line", "version": 9}, VersionNotFound, "has no version '9'"),
        (ROWS, {"model": "../x"}, NotFound, "there is no /v2/models/../x"),
        ([[1, 2]], {"model": "line"}, InvalidInput, r"has the shape \[1, 2\], it should be \[rows, 3\]"),
        ([[1, 2, 3], [1]], {"model": "line"}, InvalidInput, r"at \[1\] has 1 entries where others have 3"),
        ([[1, 2, "x"]], {"model": "line"}, InvalidInput, r"at \[0, 2\] is \"x\", not a number"),
        (object(), {"model": "line"}, InvalidInput, "not a number"),
        ([], {"model": "line"}, InvalidInput, "has no rows"),
        (ROWS, {"model": "two"}, InvalidInput, "takes 2 inputs; give a mapping with tokens, features"),
        (ROWS, {"model": "line", "passes": 1}, BadRequest, "passes = 1"),
        (ROWS, {"model": "line", "walks": 1}, BadRequest, "'walks' cannot be asked for; there are model, version"),
        (ROWS, {"model": "line", "quantities": "mean"}, BadRequest, r"quantities = 'mean' is text; give a list"),
        (ROWS, {"model": "line", "quantities": [3]}, BadRequest, "what is asked for cannot be sent"),
        (ROWS, {"model": "line", "timeout_s": "long"}, BadRequest, "timeout_s"),
        (ROWS, {"model": "line", "timeout_s": -1}, BadRequest, "timeout_s"),
        (ROWS, {"model": "line", "seed": 1 << 70}, BadRequest, "what is asked for cannot be sent"),
        (ROWS, {"model": "line", "quantities": ["x"]}, InvalidQuantity, "no quantity 'x'"),
        (ROWS, {"model": "line", "variant": "x"}, InvalidPlan, "there is no variant 'x'"),
        (ROWS, {"model": "line", "passes": object()}, BadRequest, "what is asked for cannot be sent"),
        (ROWS, {"model": "plain"}, NoActiveSite, "nothing would be random"),
        (np.zeros((1001, 3)), {"model": "line"}, TooLarge, "1001 rows are past the limit of 1000"),
        (
            np.zeros((1000, 3)),
            {"model": "line", "passes": 1000, "timeout_s": 1e-4},
            DeadlineExceeded,
            r"no answer within 0\.0001 s",
        ),
    ],
)
def test_what_is_refused_is_the_servers_own_fault_in_its_own_words(
    client: Client, inputs: Any, asked: dict[str, Any], error: type[ThinnetError], told: str
) -> None:
    with pytest.raises(error, match=told) as caught:
        client.predict(inputs, **asked)
    assert type(caught.value) is error
    if "answered" in str(caught.value):
        assert caught.value.request_id
        assert caught.value.request_id in str(caught.value)


def test_what_a_server_tells_is_typed(client: Client, folder: Path) -> None:
    assert client.models() == ["line", "overflowing", "plain", "two"]
    assert client.health().ready
    assert "bernoulli" in {each["name"] for each in client.variants()}
    assert (client.limits().limits["max_rows"].value, client.limits().limits["max_rows"].unit) == (1000, "rows")
    assert (client.limits().key, client.limits().left_s) == ("anonymous", None)

    two = client.describe("two")
    assert [(each.name, each.datatype, each.shape) for each in two.inputs] == [
        ("tokens", "INT64", (-1, 5)),
        ("features", "FP32", (-1, 2)),
    ]
    assert two.inputs[1].features == ("a", "b")
    assert (two.outputs[0].task, two.outputs[0].labels) == ("classification", ("red", "green", "blue"))
    assert two.sites[0].name == "drop"
    assert "gaussian" in two.sites[0].fits
    assert (client.describe("line").version, client.describe("line", 1).version) == (2, 1)
    assert client.describe("line").versions == (1, 2)
    assert two.fingerprint == Predictor.load(folder / "two").fingerprint()


def test_coroutines_are_answered_alike(address: str, client: Client) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(address) as there:
            told = [await there.models(), (await there.health()).ready, await there.describe("line")]
            told += [await there.limits(), await there.variants()]
            return [*told, (await there.predict(ROWS, model="line", passes=20)).mean]

    *told, mean = asyncio.run(ask())
    assert told == [client.models(), True, client.describe("line"), client.limits(), client.variants()]
    np.testing.assert_array_equal(mean, client.predict(ROWS, model="line", passes=20).mean)
