"""Rows become the network's tensors, or are refused with input, row and feature."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.errors import InvalidInput
from service.graph.tables import NOWHERE
from service.rows import check_finite, read_rows, standardise
from service.signature import Input

CPU = torch.device("cpu")
X = Input("x", shape=(3,))
TOKENS = Input("tokens", "int64", (-1,))


def read(given: Any, *inputs: Input) -> tuple[Tensor, ...]:
    return read_rows(inputs or (X,), given, CPU)


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(2, 3),
        torch.ones(2, 3, dtype=torch.float64),
        np.ones((2, 3)),
        [[1, 1, 1], [1, 1, 1]],
        {"x": [[1, 1, 1], [1.0, 1, 1]]},
        (torch.ones(2, 3),),
    ],
)
def test_a_single_input_may_be_a_tensor_an_array_lists_a_tuple_or_a_mapping(given: Any) -> None:
    (x,) = read(given)

    assert x.dtype == torch.float32
    assert torch.equal(x, torch.ones(2, 3))


@pytest.mark.parametrize(("given", "told"), [([[0, 7]], "[1] is 7"), ([[3, 3], [-1, 0]], "[0] is -1")])
def test_what_is_looked_up_is_in_the_table(given: list[list[int]], told: str) -> None:
    match = rf"input 'tokens', row {len(given) - 1}, position {re.escape(told)}, and .* has the places 0 to 6; give"
    with pytest.raises(InvalidInput, match=match):
        read_rows((X, TOKENS), (torch.ones(len(given), 3), torch.tensor(given)), CPU, (None, torch.tensor(7)))
    assert read_rows((TOKENS,), [[0, 6]], CPU, (torch.tensor(7),))


def test_a_column_that_is_looked_up_nowhere_is_free() -> None:
    tables = (torch.tensor([3, NOWHERE]),)
    assert read_rows((TOKENS,), [[2, -5], [0, 900]], CPU, tables)
    with pytest.raises(
        InvalidInput, match=r"row 1, position \[0\] is 3, and the network's table has the places 0 to 2"
    ):
        read_rows((TOKENS,), [[2, -5], [3, 1]], CPU, tables)


def test_several_inputs_go_by_order_or_by_name() -> None:
    x, tokens = torch.randn(2, 3), torch.tensor([[1, 2], [3, 4]])
    by_order, by_name = read((x, tokens), X, TOKENS), read({"tokens": tokens, "x": x}, X, TOKENS)

    assert all(torch.equal(a, b) for a, b in zip(by_order, by_name, strict=True))
    assert by_order[1].dtype == torch.int64


def test_inputs_that_are_missing_or_unknown_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"the inputs are .*; missing: \['tokens'\], unknown: \['y'\]"):
        read({"x": torch.ones(2, 3), "y": 1}, X, TOKENS)
    with pytest.raises(InvalidInput, match=r"takes 2 inputs \(x, tokens\), 1 were given"):
        read(torch.ones(2, 3), X, TOKENS)
    with pytest.raises(InvalidInput, match=r"takes 1 inputs \(x\), 2 were given"):
        read((torch.ones(2, 3), torch.ones(2, 3)))


def test_inputs_must_have_the_same_rows() -> None:
    with pytest.raises(InvalidInput, match=r"different numbers of rows: \{'x': 2, 'tokens': 1\}"):
        read((torch.ones(2, 3), torch.ones(1, 4, dtype=torch.int64)), X, TOKENS)


@pytest.mark.parametrize("given", [torch.ones(0, 3), []])
def test_no_rows_are_refused(given: Any) -> None:
    with pytest.raises(InvalidInput, match="input 'x' has no rows; give one at least"):
        read(given)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1), (2,)])
def test_another_shape_is_refused_with_the_right_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"input 'x' has the shape \[.*\], it should be \[rows, 3\]"):
        read(torch.ones(shape))


def test_a_row_without_its_list_is_told_so() -> None:
    with pytest.raises(InvalidInput, match=r"shape \[3\], it should be \[rows, 3\]; put the rows in a list"):
        read(torch.ones(3))
    with pytest.raises(InvalidInput, match=r"input 's' has the shape \[\], it should be \[rows\]; put the rows"):
        read(1.0, Input("s"))


def test_an_axis_that_varies_takes_any_length() -> None:
    for length in (1, 7):
        assert read(torch.zeros(2, length, dtype=torch.int64), TOKENS)[0].shape == (2, length)
    with pytest.raises(InvalidInput, match=r"should be \[rows, any\]"):
        read(torch.zeros(2, 1, 1, dtype=torch.int64), TOKENS)


@pytest.mark.parametrize("given", ["text", [["a", "b", "c"]], [[1.0, 2.0], [1.0]], None, [[{}] * 3]])
def test_what_is_no_table_of_numbers_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput, match="input 'x' is not a tensor of numbers"):
        read(given)


def test_whole_numbers_fit_a_float_input_and_truth_values_a_whole_one() -> None:
    assert read(torch.ones(1, 3, dtype=torch.int64))[0].dtype == torch.float32
    assert read(torch.ones(1, 3, dtype=torch.bool))[0].tolist() == [[1, 1, 1]]
    assert read([[True, False]], TOKENS)[0].tolist() == [[1, 0]]
    assert read([[1, 0]], Input("mask", "bool", (2,)))[0].tolist() == [[True, False]]


@pytest.mark.parametrize("given", [[[0.5, 1.0]], [[1j, 2]]])
def test_fractions_and_complex_numbers_do_not_fit_whole_inputs(given: Any) -> None:
    with pytest.raises(InvalidInput, match=r"input 'tokens' wants int64, torch\..* was given; give whole numbers"):
        read(given, TOKENS)


@pytest.mark.parametrize(
    ("dtype", "value", "bounds"), [("uint8", 256, "0 to 255"), ("int8", -129, "-128 to 127"), ("bool", 2, "0 to 1")]
)
def test_whole_numbers_out_of_range_are_refused_rather_than_wrapped(dtype: str, value: int, bounds: str) -> None:
    with pytest.raises(InvalidInput, match=f"input 'x' is {dtype}, which holds {bounds}"):
        read([[value]], Input("x", dtype, (1,)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_row_and_feature(value: float) -> None:
    x = torch.zeros(4, 3)
    x[2, 1] = value
    with pytest.raises(InvalidInput, match=rf"input 'x', row 2, position \[1\] is {value}; give finite numbers"):
        read(x)
    with pytest.raises(InvalidInput, match="input 'x', row 2, feature 'age' is"):
        read(x, Input("x", shape=(3,), features=("size", "age", "depth")))
    with pytest.raises(InvalidInput, match="input 's', row 2, the value is"):
        read(x[:, 1], Input("s"))


def test_a_number_too_large_for_the_inputs_type_is_refused_as_such() -> None:
    with pytest.raises(InvalidInput, match=r"row 0, position .* is inf as float32; give finite numbers"):
        read(torch.full((1, 3), 1e300, dtype=torch.float64))


def test_check_finite_passes_finite_numbers() -> None:
    check_finite(X, torch.ones(2, 3))


def test_features_are_standardised_along_the_last_axis() -> None:
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    several = Input("x", shape=(2,), mean=(1.0, 10.0), std=(2.0, 20.0))
    one = Input("x", shape=(2,), mean=(1.0,), std=(2.0,))

    assert standardise(several, x).tolist() == [[0, 0], [1, 1]]
    assert standardise(one, x).tolist() == [[0, 4.5], [1, 14.5]]
    assert standardise(X, x) is x
    assert read(x, several)[0].tolist() == [[0, 0], [1, 1]]


def test_the_callers_tensor_is_untouched() -> None:
    x = torch.ones(2, 3)
    read(x, Input("x", shape=(3,), mean=(1.0,), std=(2.0,)))

    assert torch.equal(x, torch.ones(2, 3))


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "float32", "float16"])
def test_a_small_array_is_read_as_torch_reads_it(dtype: str) -> None:
    values = np.array([[0, 3], [60000, 7]], dtype=dtype)
    (read,) = read_rows([Input("x", shape=(2,))], values, CPU)
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.from_numpy(values.astype(np.float32)))
    values[:] = 0
    assert read[0, 1] == 3, "the caller's array goes its own ways"


def test_the_extremes_of_float32_fit_and_what_is_past_them_is_refused() -> None:
    most = np.finfo(np.float32).max
    (read,) = read_rows([Input("x", shape=(2,))], np.array([[most, -most]], dtype=np.float64), CPU)
    assert read.tolist() == [[most, -most]]
    with pytest.raises(InvalidInput, match="as float32"):
        read_rows([Input("x", shape=(2,))], np.array([[0.0, -2 * float(most)]]), CPU)


def test_the_least_whole_number_is_no_fault() -> None:
    (read,) = read_rows([Input("x", shape=(1,))], np.array([[-(1 << 63)]]), CPU)
    assert read.item() == -float(1 << 63)
