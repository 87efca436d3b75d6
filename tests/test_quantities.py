"""Quantities are what their formulas say, computed once more in NumPy over all passes at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.errors import InvalidQuantity
from service.quantities import Accumulator, check, defaults, known_noise, needs_samples, quantile_of
from service.signature import Activation, Output, Task

Array = NDArray[np.float64]
PASSES = 23
CLASSES = Output("logits", Task.CLASSIFICATION, activation=Activation.SOFTMAX)
LABELS = Output("tags", Task.MULTILABEL, activation=Activation.SIGMOID)
NUMBER = Output("price", Task.REGRESSION)
GAUSS = Output("wind", Task.GAUSSIAN)
ENTROPIES = ("entropy", "expected_entropy", "mutual_information")
SHAPES = [((4, 5), -1), ((4, 5), 1), ((2, 5, 3, 3), 1), ((2, 5, 3, 3), -3), ((2, 6, 5), -1), ((2, 6, 5), 2)]
"""Batch-first shapes with five classes: vectors, masks [B, C, H, W] and tokens [B, L, C], and their class axis."""


def raw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(scale=2.0, size=(PASSES, *shape)).astype(np.float32).astype(np.float64)


def served(
    output: Output, passes: Array, *names: str, plain: Array | None = None, cuts: Sequence[int] = (1, 10)
) -> Any:
    """Run the accumulator over chunks and return its quantities as arrays."""
    accumulator = Accumulator(output, check(output, names))
    for chunk in np.split(passes, cuts):
        accumulator.add(torch.from_numpy(chunk).float())
    given = None if plain is None else torch.from_numpy(plain).float()
    return {name: value.numpy() for name, value in accumulator.finish(given).items()}


def softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def plogp(p: Array) -> Array:
    return -p * np.log(np.where(p > 0, p, 1.0))


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def pass_axis(axis: int) -> int:
    return axis + 1 if axis >= 0 else axis


# Classification


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_entropies_are_of_the_classes_along_their_axis(shape: tuple[int, ...], axis: int) -> None:
    found = served(replace(CLASSES, class_axis=axis), raw(*shape))
    p = softmax(raw(*shape), pass_axis(axis))
    entropy, expected = plogp(p.mean(0)).sum(axis), plogp(p).sum(pass_axis(axis)).mean(0)

    close(found["entropy"], entropy)
    close(found["expected_entropy"], expected)
    close(found["mutual_information"], entropy - expected)
    assert (found["mutual_information"] > 0).all()


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_mean_variance_label_and_probability_are_of_the_probabilities(shape: tuple[int, ...], axis: int) -> None:
    found = served(replace(CLASSES, class_axis=axis), raw(*shape), "standard_error")
    p = softmax(raw(*shape), pass_axis(axis))

    close(found["mean"], p.mean(0))
    close(found["variance"], p.var(0, ddof=1))
    close(found["standard_error"], p.std(0, ddof=1) / np.sqrt(PASSES))
    close(found["probability"], p.mean(0).max(axis))
    np.testing.assert_array_equal(found["label"], p.mean(0).argmax(axis))
    assert found["label"].dtype == np.int64


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_the_variation_ratio_is_the_share_of_passes_against_the_most_chosen_class(
    shape: tuple[int, ...], axis: int
) -> None:
    found = served(replace(CLASSES, class_axis=axis), raw(*shape))
    votes = raw(*shape).argmax(pass_axis(axis))
    counts = np.stack([(votes == each).sum(0) for each in range(5)])

    close(found["variation_ratio"], 1 - counts.max(0) / PASSES)


def test_the_most_chosen_class_need_not_be_the_most_probable() -> None:
    """Two passes lean to class 0, one is sure of class 1."""
    p = np.log([[[0.51, 0.49]], [[0.51, 0.49]], [[0.01, 0.99]]])
    found = served(CLASSES, p, cuts=(2,))

    assert found["label"].item() == 1
    assert found["variation_ratio"].item() == pytest.approx(1 / 3)


def test_probabilities_that_the_network_applied_itself_are_taken_as_they_are() -> None:
    p = softmax(raw(4, 5), -1)

    assert served(replace(CLASSES, activation=Activation.NONE), p).keys() == served(CLASSES, raw(4, 5)).keys()
    for name, value in served(replace(CLASSES, activation=Activation.NONE), p).items():
        close(value, served(CLASSES, raw(4, 5))[name])


def test_certain_passes_have_no_entropy_and_opposite_ones_only_mutual_information() -> None:
    sure = np.zeros((4, 2, 3))
    sure[:, :, 0] = 1.0
    sure[2:, 1] = [0.0, 1.0, 0.0]
    found = served(replace(CLASSES, activation=Activation.NONE), sure, cuts=(2,))

    close(found["entropy"], np.array([0.0, np.log(2)]))
    close(found["expected_entropy"], np.zeros(2))
    close(found["mutual_information"], np.array([0.0, np.log(2)]))
    close(found["variation_ratio"], np.array([0.0, 0.5]))


# Multilabel


def test_labels_are_independent_questions_with_an_entropy_each() -> None:
    found = served(LABELS, raw(4, 5))
    p = sigmoid(raw(4, 5))
    entropy = plogp(p.mean(0)) + plogp(1 - p.mean(0))
    expected = (plogp(p) + plogp(1 - p)).mean(0)

    close(found["mean"], p.mean(0))
    close(found["variance"], p.var(0, ddof=1))
    close(found["entropy"], entropy)
    close(found["expected_entropy"], expected)
    close(found["mutual_information"], entropy - expected)
    assert not {"label", "probability", "variation_ratio"} & found.keys()


@pytest.mark.parametrize("logit", [-800.0, 0.0, 800.0])
def test_labels_without_doubt_have_finite_entropies(logit: float) -> None:
    found = served(LABELS, np.full((PASSES, 2, 3), logit))

    assert all(np.isfinite(value).all() for value in found.values())
    close(found["entropy"], np.full((2, 3), 0.0 if logit else np.log(2)))


# Regression


def test_a_regression_serves_the_moments_of_its_passes() -> None:
    found = served(NUMBER, raw(4, 2))

    assert set(found) == {"mean", "variance"}
    close(found["mean"], raw(4, 2).mean(0))
    close(found["variance"], raw(4, 2).var(0, ddof=1))


def test_scale_and_shift_act_inside_every_pass() -> None:
    found = served(replace(NUMBER, scale=-3.0, shift=7.0), raw(4, 2), "samples", "standard_error")

    close(found["mean"], raw(4, 2).mean(0) * -3 + 7)
    close(found["variance"], raw(4, 2).var(0, ddof=1) * 9)
    close(found["standard_error"], raw(4, 2).std(0, ddof=1) * 3 / np.sqrt(PASSES))
    close(found["samples"], np.moveaxis(raw(4, 2) * -3 + 7, 0, 1))


def test_the_exponential_comes_last_and_inside_every_pass() -> None:
    output = replace(NUMBER, scale=0.5, shift=0.25, exp=True)
    values = np.exp(raw(4, 2) * 0.5 + 0.25)
    found = served(output, raw(4, 2), "deterministic", plain=raw(4, 2)[0])

    close(found["mean"], values.mean(0))
    close(found["variance"], values.var(0, ddof=1))
    close(found["deterministic"], values[0])


def test_a_noise_precision_is_in_served_units_and_adds_its_inverse() -> None:
    found = served(replace(NUMBER, scale=3.0, noise_precision=4.0), raw(4, 2))

    close(found["noise_variance"], np.full((4, 2), 0.25))
    close(found["total_variance"], raw(4, 2).var(0, ddof=1) * 9 + 0.25)


# Gaussian


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (3.0, -2.0), (-0.5, 1.0)])
def test_a_gaussian_head_is_a_mean_and_a_log_variance_in_served_units(scale: float, shift: float) -> None:
    """The law of total variance; a log-variance grows by 2 log |scale|."""
    found = served(replace(GAUSS, scale=scale, shift=shift), raw(4, 6))
    means, log_variances = np.split(raw(4, 6), 2, axis=-1)
    means = means * scale + shift
    noise = np.exp(log_variances + 2 * np.log(abs(scale))).mean(0)

    close(found["mean"], means.mean(0))
    close(found["variance"], means.var(0, ddof=1))
    close(found["noise_variance"], noise)
    close(found["total_variance"], means.var(0, ddof=1) + noise)
    assert found["mean"].shape == (4, 3)


def test_a_gaussian_heads_samples_and_deterministic_answer_are_its_means() -> None:
    found = served(replace(GAUSS, scale=3.0, shift=1.0), raw(4, 6), "samples", "deterministic", plain=raw(4, 6)[3])
    means = raw(4, 6)[..., :3] * 3 + 1

    close(found["samples"], np.moveaxis(means, 0, 1))
    close(found["deterministic"], means[3])


# Quantiles, samples, the deterministic answer


@pytest.mark.parametrize("passes", [2, 10, 23])
@pytest.mark.parametrize(
    "name", ["quantile_0.5", "quantile_.05", "quantile_0.975", "quantile_0.001", "quantile_0.9999"]
)
def test_quantiles_are_numpys(name: str, passes: int) -> None:
    values = raw(4, 2)[:passes]
    found = served(NUMBER, values, name, cuts=(1,))

    close(found[name], np.quantile(values, float(name.removeprefix("quantile_")), axis=0))
    assert set(found) == {"mean", "variance", name}


def test_quantiles_are_of_the_probabilities_not_of_the_logits() -> None:
    found = served(CLASSES, raw(4, 5), "quantile_0.25")

    close(found["quantile_0.25"], np.quantile(softmax(raw(4, 5), -1), 0.25, axis=0))


def test_several_quantiles_and_samples_come_together() -> None:
    found = served(NUMBER, raw(4, 2), "quantile_0.1", "samples", "quantile_0.9")

    assert list(found) == ["mean", "variance", "quantile_0.1", "samples", "quantile_0.9"]
    assert (found["quantile_0.1"] < found["quantile_0.9"]).all()
    assert found["samples"].shape == (4, PASSES, 2)


def test_samples_keep_the_order_of_the_passes() -> None:
    found = served(NUMBER, raw(4, 2), "samples")

    close(found["samples"][:, 0], raw(4, 2)[0])
    close(found["samples"][:, -1], raw(4, 2)[-1])


def test_the_deterministic_answer_is_activated_like_a_pass() -> None:
    plain = raw(4, 5, seed=1)[0]

    close(served(CLASSES, raw(4, 5), "deterministic", plain=plain)["deterministic"], softmax(plain, -1))
    close(served(LABELS, raw(4, 5), "deterministic", plain=plain)["deterministic"], sigmoid(plain))


# Chunks, precision


@pytest.mark.parametrize("output", [CLASSES, LABELS, NUMBER, replace(GAUSS, scale=2.0)], ids=lambda output: output.task)
@pytest.mark.parametrize("cuts", [(1,), (22,), (5, 6, 7), tuple(range(1, PASSES))])
def test_chunks_of_passes_are_one_chunk(output: Output, cuts: tuple[int, ...]) -> None:
    names = ("samples", "quantile_0.3", "standard_error")
    whole, chunked = served(output, raw(4, 6), *names, cuts=()), served(output, raw(4, 6), *names, cuts=cuts)

    assert list(whole) == list(chunked)
    for name, value in whole.items():
        close(chunked[name], value)


@pytest.mark.parametrize("output", [CLASSES, LABELS, NUMBER, GAUSS], ids=lambda output: output.task)
def test_equal_passes_have_exactly_no_variance_and_no_mutual_information(output: Output) -> None:
    found = served(output, np.repeat(raw(4, 6)[:1], PASSES, axis=0), "standard_error")

    assert (found["variance"] == 0).all()
    assert (found["standard_error"] == 0).all()
    if "mutual_information" in found:
        assert np.abs(found["mutual_information"]).max() < 1e-12
    if "variation_ratio" in found:
        assert (found["variation_ratio"] == 0).all()


def test_a_small_spread_on_a_large_value_survives() -> None:
    passes = np.array([1.0, 2.0, 4.0])[:, None, None] + 2.0**22

    close(served(NUMBER, passes, cuts=(1,))["variance"], np.full((1, 1), 7 / 3))


@pytest.mark.parametrize("output", [CLASSES, LABELS, replace(NUMBER, noise_precision=2.0), GAUSS], ids=lambda o: o.task)
def test_answers_are_float32_and_labels_int64(output: Output) -> None:
    found = served(output, raw(4, 6), "samples", "quantile_0.5", "deterministic", plain=raw(4, 6)[0])

    assert {name: value.dtype for name, value in found.items() if name != "label"} == dict.fromkeys(
        found.keys() - {"label"}, np.dtype(np.float32)
    )


@pytest.mark.parametrize("output", [CLASSES, LABELS, NUMBER, GAUSS], ids=lambda output: output.task)
def test_passes_may_come_as_half_floats(output: Output) -> None:
    accumulator = Accumulator(output, check(output, ()))
    accumulator.add(torch.from_numpy(raw(4, 6)[:4]).bfloat16())
    rounded = torch.from_numpy(raw(4, 6)[:4]).bfloat16().double().numpy()

    for name, value in accumulator.finish().items():
        close(value.numpy(), served(output, rounded, cuts=())[name])


# Which quantities an output has


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (CLASSES, ("mean", "variance", "label", "probability", *ENTROPIES, "variation_ratio")),
        (LABELS, ("mean", "variance", *ENTROPIES)),
        (NUMBER, ("mean", "variance")),
        (replace(NUMBER, noise_precision=2.0), ("mean", "variance", "noise_variance", "total_variance")),
        (GAUSS, ("mean", "variance", "noise_variance", "total_variance")),
    ],
    ids=["classification", "multilabel", "regression", "regression with noise", "gaussian"],
)
def test_an_output_comes_with_its_tasks_quantities(output: Output, expected: tuple[str, ...]) -> None:
    assert defaults(output) == check(output, ()) == tuple(served(output, raw(4, 6))) == expected


def test_what_is_asked_for_comes_after_the_defaults_and_once() -> None:
    asked = ("samples", "mean", "quantile_0.5", "samples")

    assert check(NUMBER, asked) == ("mean", "variance", "samples", "quantile_0.5")


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (NUMBER, "entropy"),
        (NUMBER, "noise_variance"),
        (NUMBER, "total_variance"),
        (NUMBER, "label"),
        (LABELS, "variation_ratio"),
        (CLASSES, "noise_variance"),
        (GAUSS, "mutual_information"),
        (CLASSES, "Mean"),
        (NUMBER, ""),
        *(
            (NUMBER, f"quantile_{q}")
            for q in ("0", "0.0", "1", "1.0", "2.5", "-0.5", "0.5x", "", "5e-1", "nan", "00.5")
        ),
    ],
)
def test_a_quantity_that_an_output_does_not_have_is_refused_with_those_it_has(output: Output, name: str) -> None:
    says = (
        rf"^output '{output.name}' \({output.task}\) has no quantity '{name}'; it has mean, variance, .*quantile_<q>$"
    )
    with pytest.raises(InvalidQuantity, match=says):
        check(output, (name,))


@pytest.mark.parametrize(("name", "q"), [("quantile_0.5", 0.5), ("quantile_.25", 0.25), ("quantile_0.975", 0.975)])
def test_a_quantile_is_named_by_its_level(name: str, q: float) -> None:
    assert quantile_of(name) == q
    assert needs_samples(("mean", name))


@pytest.mark.parametrize("name", ["quantile_0.0", "quantile_1.0", "median", "xquantile_0.5", "quantile_0.5\n"])
def test_what_is_no_level_between_zero_and_one_is_no_quantile(name: str) -> None:
    assert quantile_of(name) is None
    assert not needs_samples(("mean", "variance", "standard_error", "deterministic", name))


def test_samples_need_every_pass() -> None:
    assert needs_samples(("mean", "samples"))
    assert not needs_samples(defaults(CLASSES))


def test_only_a_plain_regressions_noise_is_unknown() -> None:
    assert not known_noise(NUMBER)
    assert all(known_noise(each) for each in (replace(NUMBER, noise_precision=1.0), GAUSS, CLASSES, LABELS))
