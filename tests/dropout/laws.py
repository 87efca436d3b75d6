"""The laws of the catalogue: plain functions of a variant that raise AssertionError, each message opening with its law.

Tolerances are 5 standard errors, from the sample's own fourth moments, and a law refuses to judge a mean or variance
with so few draws that the standard error is more than 3 % of the value, or of the spread where a mean is less.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import sqrt

import squares
import torch
from bench import (
    CHANNELS,
    MAPS,
    OUT,
    PASSES,
    POSITIONS,
    ROWS,
    act,
    closed_forms,
    draw,
    gated_row_covariance,
    masked_covariance,
    stream,
)
from bench import outputs as run
from torch import Tensor

from service.dropout import Cutout, DropBlock, Standout, Variant
from service.dropout.noise import Shape
from service.dropout.variant import CellVariant, MaskedWeight, WeightVariant

Law = Callable[[Variant], None]
SIGMAS = 5
LARGEST_RELATIVE_ERROR = 0.03

SHARED_AXES: dict[str, frozenset[str]] = {
    "nothing": frozenset(),
    "all positions of a channel": frozenset({"position"}),
    "all elements of the branch": frozenset({"channel", "position"}),
    "all uses of the parameter; all rows in scope pass": frozenset(),
    "all rows in scope pass": frozenset(),
    "all units; all uses of the parameter; all rows in scope pass": frozenset(),
    "all weights of a unit; all uses of the parameter; all rows in scope pass": frozenset(),
    "all positions of a square": frozenset(),
    "all channels; all positions of the square": frozenset({"channel"}),
    "all features and occurrences of a word": frozenset({"position"}),
    "all steps of a sequence": frozenset({"position"}),
    "all steps of a unit": frozenset({"channel"}),
    "all steps of a sequence; all uses of the parameter; all rows in scope pass": frozenset(),
}
"""What each wording of `Variant.shared` means inside a row: the axes along which one draw serves all."""

GROWTHS: tuple[tuple[frozenset[int], tuple[int, ...], tuple[int, ...]], ...] = (
    (frozenset({1}), (3, 1), (3, 4)),
    (frozenset({1}), (3, 4), (3, 9)),
    (frozenset({0}), (2, 5), (300, 5)),  # past a block of 256 truth values
    (frozenset({1, 2}), (2, 1, 3), (2, 3, 3)),
    (frozenset({1, 2}), (2, 2, 4), (2, 5, 6)),
    (frozenset({0, 2}), (1, 2, 1), (4, 2, 3)),
)
"""Growing axes, a shorter shape and a longer one."""

CELL_GROWTHS: tuple[tuple[frozenset[int], Shape, Shape], ...] = (
    (frozenset({0}), (1, 2, 4, 3, 2), (4, 2, 4, 3, 2)),
    (frozenset({0}), (4, 1, 3, 2, 3), (9, 1, 3, 2, 3)),
)
"""The same of recurrent layers, whose steps alone grow."""


@lru_cache(maxsize=1)
def passes(variant: Variant) -> Tensor:
    """Return PASSES passes [S, ROWS, …] of a variant; laws look at them one after the other, and change nothing."""
    return run(variant, stream())


def the_mean_is_its_closed_form(variant: Variant) -> None:
    mean, variance = closed_forms(variant)
    error = (variance / PASSES).sqrt()
    _agree("mean", passes(variant).mean(0), mean, error)
    _enough("mean", error, mean.abs().maximum(variance.sqrt()))  # a mean may be 0


def the_variance_is_its_closed_form(variant: Variant) -> None:
    _, expected = closed_forms(variant)
    y = passes(variant)
    error = variance_error(y)
    _agree("variance", y.var(0), expected, error)
    _enough("variance", error, expected)


def noise_is_shared_as_declared(variant: Variant) -> None:
    """Correlation within a row: 1 between elements that share a draw, 0 between all others."""
    _same("sharing: correlation", correlation(passes(variant)[:, 0].flatten(1)), shares(variant))


def a_linear_layer_after_it_covaries(variant: Variant) -> None:
    """Cov(Vy) = V C Vᵀ; where nothing is shared that is (p / q) Σ V_ij V_kj x_j² for multiplicative noise."""
    y = passes(variant)[:, 0].flatten(1)
    after = torch.sin(torch.arange(4.0 * y.shape[1])).reshape(4, -1).double()
    deviation = closed_forms(variant)[1][0].flatten().sqrt()
    expected = after @ (shares(variant) * torch.outer(deviation, deviation)) @ after.T
    _covaries("linear", y @ after.T, expected)


def rows_share_one_network_in_scope_pass(variant: Variant) -> None:
    rows = draw(variant, stream(1)).shape[1]
    assert rows == 1, f"pass scope: the noise has {rows} rows instead of 1"
    y = passes(variant).flatten(2)
    expected = _row_covariance(variant)
    for element in range(y.shape[2]):
        _covaries("pass scope: rows", y[:, :, element], expected[..., element])


def rows_are_independent_in_scope_row(variant: Variant) -> None:
    noise = draw(variant, stream(rows=range(ROWS)))
    assert noise.shape[1] == ROWS, f"row scope: the noise has {noise.shape[1]} rows instead of {ROWS}"
    y = act(variant, noise).double()
    _agree("row scope: variance", y.var(0), closed_forms(variant)[1], variance_error(y))
    for element in y.flatten(2).unbind(2):
        _same("row scope: correlation between rows", correlation(element), torch.eye(ROWS))


def passes_are_independent(variant: Variant) -> None:
    y = passes(variant)[:, 0].flatten(1)
    for lag in (1, 2, 7):
        between = correlation_of_pairs(y[lag:], y[:-lag])
        assert (between.abs() <= SIGMAS / sqrt(PASSES)).all(), f"passes: correlation at lag {lag} is {between.tolist()}"
    of = 25
    means = y.unflatten(0, (-1, of)).mean(1)
    _agree("passes: T times the variance of a mean of T", means.var(0) * of, y.var(0), variance_error(means) * of)


def a_seed_is_reproducible_and_its_own(variant: Variant) -> None:
    once, again, other = (draw(variant, stream(4000, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(once, again), "seed: the same seed draws other noise the second time"
    _unrelated("seed: 3 and 4", once, other)


def a_site_has_noise_of_its_own(variant: Variant) -> None:
    here = stream(4000)
    _unrelated("site: two sites", draw(variant, here), draw(variant, replace(here, site="layer.dropout#2")))


def grouping_of_passes_changes_nothing(variant: Variant) -> None:
    for rows in (None, range(2)):
        for growing in growths(variant):
            whole = replace(stream(9, rows, first=5), growing=growing)
            cuts = ((5, 2), (7, 6), (13, 1))
            parts = [draw(variant, replace(whole, first_pass=first, passes=passes)) for first, passes in cuts]
            assert torch.equal(torch.cat(parts), draw(variant, whole)), "grouping: passes drawn in parts differ"


def growing_leaves_the_shorter_noise_unchanged(variant: Variant) -> None:
    """A site's growing axes may be longer in another request; every position that both have keeps its noise."""
    assert not isinstance(variant, WeightVariant)
    for growing, shorter, longer in growths_of(type(variant)):
        for rows in (None, range(2)):
            numbers = replace(stream(6, rows, first=2), growing=growing)
            short, long = (_spread(variant.draw(numbers, shape), shape) for shape in (shorter, longer))
            kept = long[(..., *(slice(size) for size in short.shape[2:]))]
            assert torch.equal(kept, short), f"growth: {shorter} to {longer} changes noise along axes {set(growing)}"


def a_row_depends_on_its_index_only(variant: Variant) -> None:
    numbers = stream(6, range(6))
    whole = draw(variant, numbers)
    for rows in (range(4, 5), range(2, 6), (5, 0, 3)):
        part = draw(variant, replace(numbers, rows=rows))
        assert torch.equal(part, whole[:, list(rows)]), f"row index: rows {list(rows)} alone are not those among others"


def a_rate_of_zero_changes_nothing(variant: Variant) -> None:
    off = replace(variant, p=0.0)
    plain = closed_forms(off)[0].float()
    found = act(off, draw(off, stream(50)))
    assert torch.allclose(found, plain.expand_as(found), atol=1e-6), "rate zero: the layer is not the plain one"


LAWS: tuple[Law, ...] = (
    the_mean_is_its_closed_form,
    the_variance_is_its_closed_form,
    noise_is_shared_as_declared,
    a_linear_layer_after_it_covaries,
    rows_share_one_network_in_scope_pass,
    rows_are_independent_in_scope_row,
    passes_are_independent,
    a_seed_is_reproducible_and_its_own,
    a_site_has_noise_of_its_own,
    grouping_of_passes_changes_nothing,
    growing_leaves_the_shorter_noise_unchanged,
    a_row_depends_on_its_index_only,
    a_rate_of_zero_changes_nothing,
)


def laws_of(variant: type[Variant]) -> tuple[Law, ...]:
    """Return the laws that bind a variant: a weight's shape never grows, and not all have a rate."""
    unbound = {growing_leaves_the_shorter_noise_unchanged} if issubclass(variant, WeightVariant) else set()
    if not variant.rated:
        unbound.add(a_rate_of_zero_changes_nothing)
    return tuple(law for law in LAWS if law not in unbound)


def shares(variant: Variant) -> Tensor:
    """Return how elements of a row correlate by the variant's own words: 1 or 0, or what units make of their inputs."""
    if isinstance(variant, MaskedWeight):
        covariance = masked_covariance(variant)[0, 0]
        deviation = covariance.diag().sqrt()
        return (covariance / torch.outer(deviation, deviation)).fill_diagonal_(1)
    if isinstance(variant, WeightVariant):
        return torch.eye(OUT).double()
    assert variant.shared in SHARED_AXES, f"sharing: say in SHARED_AXES what {variant.shared!r} means"
    if isinstance(variant, DropBlock | Cutout):
        return squares.correlation(variant, MAPS.shape[1:])
    axes = SHARED_AXES[variant.shared]
    channel = torch.ones(CHANNELS, CHANNELS) if "channel" in axes else torch.eye(CHANNELS)
    position = torch.ones(POSITIONS, POSITIONS) if "position" in axes else torch.eye(POSITIONS)
    return torch.kron(channel, position).double()


def growths_of(variant: type[Variant]) -> tuple[tuple[frozenset[int], Shape, Shape], ...]:
    """Return how shapes of the variant's sites may grow."""
    return CELL_GROWTHS if issubclass(variant, CellVariant) else GROWTHS


def growths(variant: Variant) -> tuple[frozenset[int], ...]:
    """Return the growing axes that a site of this variant may have in `bench`."""
    if isinstance(variant, CellVariant):
        return (frozenset(), frozenset({0}))
    return (frozenset(), frozenset({1})) if not isinstance(variant, WeightVariant) else (frozenset(),)


def correlation(columns: Tensor) -> Tensor:
    """Return the correlations between the columns of [S, K]."""
    return torch.corrcoef(columns.double().T)


def correlation_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of each column of a [S, K] with the same column of b."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).mean(0) / (a.square().mean(0) * b.square().mean(0)).sqrt()


def variance_error(y: Tensor) -> Tensor:
    """Return the standard error of the variance of y [S, …] from its fourth moment: √((μ₄ - σ⁴ (S - 3) / (S - 1)) / S).

    Two equally likely values have μ₄ = σ⁴ and no error of first order; the error of order 1 / S is added.
    """
    count = len(y)
    square = (y - y.mean(0)).square()
    variance = square.sum(0) / (count - 1)
    spread = square.square().mean(0) - variance.square() * (count - 3) / (count - 1)
    return (spread.clamp_min(0) / count).sqrt() + 4 * variance / count


def _row_covariance(variant: Variant) -> Tensor:
    """Return Cov between rows [ROWS, ROWS, elements] in scope pass."""
    if isinstance(variant, MaskedWeight):
        return masked_covariance(variant).diagonal(dim1=2, dim2=3)
    if isinstance(variant, Standout):
        return gated_row_covariance()
    deviation = closed_forms(variant)[1].sqrt().flatten(1)
    return deviation[:, None] * deviation[None, :]


def _spread(noise: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 5:  # a recurrent layer's: its columns stand for inputs and units
        shape = (*shape[:2], noise.shape[-1])
    return noise.expand(*noise.shape[:2], *shape)


def _agree(what: str, found: Tensor, expected: Tensor, error: Tensor) -> None:
    off = ((found - expected).abs() / error.clamp_min(1e-12)).max().item()
    assert off <= SIGMAS, f"{what} is {off:.1f} standard errors off: {found.tolist()} instead of {expected.tolist()}"


def _enough(what: str, error: Tensor, value: Tensor) -> None:
    relative = (error / value.abs()).max().item()
    assert relative <= LARGEST_RELATIVE_ERROR, f"{what}: {PASSES} draws leave a standard error of {relative:.1%}"


def _same(what: str, found: Tensor, expected: Tensor) -> None:
    """Compare correlations; independent columns have a standard error of 1 / √S, others up to twice."""
    independent = torch.where(expected == 0, SIGMAS / sqrt(PASSES), 2 * SIGMAS / sqrt(PASSES))
    tolerance = torch.where(expected == 1, 1e-5, independent)
    off = (found - expected).abs()
    assert (off <= tolerance).all(), f"{what} is {found.tolist()} instead of {expected.tolist()}"


def _covaries(what: str, columns: Tensor, expected: Tensor) -> None:
    centred = columns - columns.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    scale = torch.outer(centred.std(0), centred.std(0))
    error = products.std(0) / sqrt(len(columns)) + 4 * scale / len(columns)
    _agree(f"{what}: covariance", products.sum(0) / (len(columns) - 1), expected, error)


def _unrelated(what: str, a: Tensor, b: Tensor) -> None:
    assert not torch.equal(a, b), f"{what} have the same noise"
    shared = correlation_of_pairs(a.double().flatten(1), b.double().flatten(1))
    assert (shared.abs() <= SIGMAS / sqrt(len(a))).all(), f"{what} have noise that correlates"
