"""Every variant draws what a literal transcription of its paper draws: moments, values, the whole distribution."""

from itertools import product
from math import log, sqrt

import numpy as np
import pytest
import torch
from bench import (
    BIAS,
    FEATURES,
    MAPS,
    PASSES,
    POOLED,
    SAMPLED,
    WEIGHT,
    U,
    X,
    at_rate,
    learned,
    maps,
    maxima_of,
    outputs,
    stream,
)
from laws import SIGMAS, variance_error
from numpy.typing import NDArray
from transcriptions import ACTIVATIONS, CELLS, MAXIMA, PAIRS, POOLS, WEIGHTS
from transcriptions import MAPS as ON_MAPS

from service.dropout import (
    BY_NAME,
    Alpha,
    Bernoulli,
    DropConnect,
    DropPath,
    FeatureAlpha,
    Gaussian,
    LayerDrop,
    MaskedMaxPooling,
    MaxDrop,
    MaxDropChannel,
    Spatial,
    Uniform,
    Variant,
    WordDropout,
)

TWO_VALUED = (
    Bernoulli,
    Spatial,
    Alpha,
    FeatureAlpha,
    DropPath,
    LayerDrop,
    WordDropout,
    MaskedMaxPooling,
    MaxDrop,
    MaxDropChannel,
)
NAMES = [variant.name for variant in SAMPLED]
RATES = (0.1, 0.5)
KS_LEVEL = 1e-6
Passes = NDArray[np.float64]


def papers(name: str, p: float) -> Passes:
    """Return the transcription's passes [S, elements] of the bench's first row."""
    rng = np.random.default_rng(11)
    if name in ACTIVATIONS:
        return ACTIVATIONS[name](rng, PASSES, p, X[0].double().numpy()).reshape(PASSES, -1)
    if name in ON_MAPS:
        return ON_MAPS[name](rng, PASSES, p, MAPS[0].double().numpy()).reshape(PASSES, -1)
    if name in PAIRS:
        return PAIRS[name](rng, PASSES, U[0].double().numpy(), X[0].double().numpy()).reshape(PASSES, -1)
    if name in POOLS:
        return POOLS[name](rng, PASSES, p, POOLED[0].double().numpy()).reshape(PASSES, -1)
    if name in MAXIMA:
        variant = MaxDropChannel() if name == MaxDropChannel.name else MaxDrop()
        passes = torch.from_numpy(MAXIMA[name](rng, PASSES, p, maps(variant)[0].double().numpy()))
        return maxima_of(variant, passes).flatten(1).numpy()
    if name in CELLS:
        return CELLS[name](rng, PASSES, p, X[0].double().numpy(), U[0].double().numpy()).reshape(PASSES, -1)
    given = (each.double().numpy() for each in (FEATURES[0], WEIGHT, BIAS, *learned(BY_NAME[name])))
    return WEIGHTS[name](rng, PASSES, p, *given)


def ours(name: str, p: float) -> Passes:
    return outputs(at_rate(BY_NAME[name], p), stream())[:, 0].flatten(1).numpy()


def largest_gap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the largest distance of two samples' distribution functions (Kolmogorov and Smirnov)."""
    a, b = np.sort(a.round(5)), np.sort(b.round(5))  # the same value may differ by float32's rounding
    at = np.union1d(a, b)
    below_a, below_b = (np.searchsorted(each, at, side="right") / len(each) for each in (a, b))
    return float(np.abs(below_a - below_b).max())


def ks_limit(a: int, b: int) -> float:
    return sqrt(-log(KS_LEVEL / 2) / 2) * sqrt((a + b) / (a * b))


def test_every_variant_has_a_transcription() -> None:
    assert {*ACTIVATIONS, *CELLS, *ON_MAPS, *POOLS, *MAXIMA, *PAIRS, *WEIGHTS} == set(NAMES)


@pytest.fixture(scope="module", params=product(NAMES, RATES), ids=lambda each: f"{each[0]}-{each[1]}")
def both(request: pytest.FixtureRequest) -> tuple[Passes, Passes]:
    """Our passes and the paper's, drawn once for all that compares them."""
    return ours(*request.param), papers(*request.param)


def test_mean_and_variance_are_the_papers(both: tuple[Passes, Passes]) -> None:
    mine, theirs = map(torch.from_numpy, both)
    mean_error = ((mine.var(0) + theirs.var(0)) / PASSES).sqrt()
    spread_error = (variance_error(mine).square() + variance_error(theirs).square()).sqrt()

    assert ((mine.mean(0) - theirs.mean(0)).abs() <= SIGMAS * mean_error).all()
    assert ((mine.var(0) - theirs.var(0)).abs() <= SIGMAS * spread_error).all()


def test_elements_vary_together_as_in_the_paper(both: tuple[Passes, Passes]) -> None:
    mine, theirs = (np.corrcoef(passes, rowvar=False) for passes in both)

    assert np.abs(mine - theirs).max() <= SIGMAS * sqrt(2 / PASSES)


def test_the_distribution_of_every_element_is_the_papers(both: tuple[Passes, Passes]) -> None:
    gaps = [largest_gap(mine, theirs) for mine, theirs in zip(*(each.T for each in both), strict=True)]

    assert max(gaps) <= ks_limit(PASSES, PASSES)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("variant", TWO_VALUED)
def test_an_element_takes_the_papers_two_values(variant: type[Variant], p: float) -> None:
    for mine, theirs in zip(ours(variant.name, p).T, papers(variant.name, p).T, strict=True):
        assert np.unique(theirs.round(4)).size == 2
        assert same_values(mine, theirs)


def test_a_unit_of_dropconnect_takes_the_papers_subset_sums() -> None:
    for mine, theirs in zip(ours(DropConnect.name, 0.5).T, papers(DropConnect.name, 0.5).T, strict=True):
        assert np.unique(theirs.round(4)).size > 30
        assert same_values(mine, theirs)


def same_values(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    gaps = np.abs(np.unique(a.round(4))[:, None] - np.unique(b.round(4))[None, :])
    return bool(max(gaps.min(0).max(), gaps.min(1).max()) < 2e-4)


def test_uniform_at_a_quarter_is_a_mask_from_zero_to_one_over_its_mean() -> None:
    mine = ours(Uniform.name, 0.25)[:, 0] / X[0, 0, 0].item()
    mask = np.random.default_rng(1).random(PASSES)

    assert Uniform().p == 0.25
    assert 0 < mine.min() < 1e-3
    assert 2 - 1e-3 < mine.max() < 2
    assert largest_gap(mine, mask / 0.5) <= ks_limit(PASSES, PASSES)


def test_the_distributions_tell_variants_of_equal_variance_apart() -> None:
    """The check above can fail: these three have the same mean and variance."""
    for one, other in ((Bernoulli, Gaussian), (Gaussian, Uniform), (Uniform, Bernoulli)):
        assert largest_gap(ours(one.name, 0.5)[:, 0], papers(other.name, 0.5)[:, 0]) > 2 * ks_limit(PASSES, PASSES)
