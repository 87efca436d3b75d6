"""Moments merge: any chunks, in any order, are the whole."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service import moments
from service.moments import Moments, Spread

FIELDS = ("mean", "m2", "m3", "m4")
OFFSETS = (0.0, -3.0, 1e4, 1e8)


def skewed(passes: int, offset: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).gamma(2.0, size=(passes, 3, 2)) + offset


def reference(values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    mean = values.mean(0)
    return {"mean": mean} | {f"m{k}": ((values - mean) ** k).sum(0) for k in (2, 3, 4)}


def chunks(values: NDArray[np.float64], sizes: list[int]) -> list[Moments]:
    ends = np.cumsum(sizes)
    return [Moments.of(torch.from_numpy(values[end - size : end])) for size, end in zip(sizes, ends, strict=True)]


def merged(parts: list[Moments]) -> Moments:
    return reduce(Moments.merge, parts)


def assert_are(found: Moments, values: NDArray[np.float64], offset: float = 0.0) -> None:
    expected = reference(values)
    rounding = 1e-9 + 1e-14 * abs(offset) * len(values)  # of the offset itself: a few units in the last place
    assert found.count == len(values)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name).numpy(), expected[name], rtol=1e-9 + rounding, atol=rounding)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("passes", [1, 2, 3, 100])
def test_moments_are_numpys(passes: int, offset: float) -> None:
    values = skewed(passes, offset)

    assert_are(Moments.of(torch.from_numpy(values)), values, offset)


@pytest.mark.parametrize("elements", [1, 20, 40])
def test_what_is_summed_part_by_part_is_the_whole(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_PART_ELEMENTS", elements)
    values = skewed(10)
    assert_are(Moments.of(torch.from_numpy(values)), values)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9), seed=st.integers(0, 99), offset=st.sampled_from(OFFSETS)
)
def test_chunks_of_any_sizes_merge_into_the_whole(sizes: list[int], seed: int, offset: float) -> None:
    values = skewed(sum(sizes), offset, seed)

    assert_are(merged(chunks(values, sizes)), values, offset)


@given(order=st.permutations(range(5)))
def test_chunks_merge_in_any_order(order: list[int]) -> None:
    values = skewed(30)
    parts = chunks(values, [1, 9, 4, 14, 2])

    assert_are(merged([parts[index] for index in order]), values)


def test_merging_is_associative() -> None:
    values = skewed(20, 1e4)
    a, b, c = chunks(values, [3, 12, 5])

    assert_are(a.merge(b).merge(c), values, 1e4)
    assert_are(a.merge(b.merge(c)), values, 1e4)


@pytest.mark.parametrize("sizes", [[30], [1, 9, 4, 14, 2]])
def test_without_the_higher_moments_the_others_are_the_same_bits(sizes: list[int]) -> None:
    values, ends = torch.from_numpy(skewed(30, 1e4)), np.cumsum(sizes)
    parts = [Spread.of(values[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    found, whole = reduce(Spread.merge, parts), merged(chunks(values.numpy(), sizes))

    assert torch.equal(found.mean, whole.mean)
    assert torch.equal(found.variance, whole.variance)
    rows = torch.tensor([True, False, True])
    assert torch.equal(found.of_rows(rows).m2, whole.of_rows(rows).m2)


def test_ten_thousand_single_passes_are_one_chunk() -> None:
    values = skewed(10_000, 1e4)

    assert_are(merged(chunks(values, [1] * 10_000)), values, 1e4)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e8 + 0.1, -7.7e-12])
@pytest.mark.parametrize("sizes", [[2], [7], [3, 4, 1], [1] * 50])
def test_equal_passes_have_exactly_no_variance(value: float, sizes: list[int]) -> None:
    same = np.full((sum(sizes), 3, 2), value)
    moments = merged(chunks(same, sizes))

    assert (moments.mean == value).all()
    for spread in (moments.variance, moments.standard_error, moments.variance_standard_error, moments.m3, moments.m4):
        assert (spread == 0).all()


def test_one_element_can_vary_where_its_neighbours_do_not() -> None:
    values = torch.full((5, 3), 0.1, dtype=torch.float64)
    values[:, 1] = torch.arange(5.0)
    moments = Moments.of(values)

    assert moments.variance.tolist() == [0.0, 2.5, 0.0]


def test_float32_passes_are_summed_in_float64() -> None:
    values = torch.tensor([1e8, 1e8 + 8, 1e8 + 16], dtype=torch.float32)[:, None]
    moments = Moments.of(values)

    assert moments.mean.dtype == torch.float64
    assert moments.mean.item() == 1e8 + 8
    assert moments.variance.item() == 64


def test_the_variance_is_unbiased_and_its_root_over_n_is_the_standard_error() -> None:
    values = skewed(9)
    moments = merged(chunks(values, [4, 5]))

    np.testing.assert_allclose(moments.variance.numpy(), values.var(0, ddof=1))
    np.testing.assert_allclose(moments.standard_error.numpy(), values.std(0, ddof=1) / 3)


@pytest.mark.parametrize(("name", "kurtosis"), [("standard_normal", 3.0), ("exponential", 9.0), ("random", 1.8)])
def test_the_variances_standard_error_is_its_spread_over_repetitions(name: str, kurtosis: float) -> None:
    passes, repetitions = 500, 8000
    values = torch.from_numpy(getattr(np.random.default_rng(3), name)(size=(passes, repetitions)))
    moments = Moments.of(values)
    spread = moments.variance.std().item()
    claimed = moments.variance_standard_error.square().mean().sqrt().item()
    theory = moments.variance.mean().item() * ((kurtosis - (passes - 3) / (passes - 1)) / passes) ** 0.5

    # the spread of a standard deviation over R repetitions of roughly normal values is σ / √(2 R): 0.8 %
    assert spread == pytest.approx(theory, rel=5 / (2 * repetitions) ** 0.5)
    assert claimed == pytest.approx(theory, rel=5 / (2 * repetitions) ** 0.5)


def test_two_equally_likely_values_leave_next_to_no_error_in_their_variance() -> None:
    values = torch.tensor([0.0, 1.0]).repeat(500)[:, None]
    error = Moments.of(values).variance_standard_error

    assert 0 <= error.item() < 1e-3
