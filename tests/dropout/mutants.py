"""Faults that a variant could have, each a class derived from the variant; a law that catches none would be no law.

A mutant keeps the variant's name, words and closed forms and changes how it draws or acts, or the reverse.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import laws
import torch
from bench import ROWS, draw, noise_shape, stream
from laws import Law, growths_of
from torch import Tensor

from service.dropout import (
    Alpha,
    Cutout,
    DropBlock,
    DropConnect,
    DropConnectSampled,
    Fast,
    FeatureAlpha,
    Gaussian,
    LayerDrop,
    MaskedMaxPooling,
    MaxDrop,
    MaxPoolingDropout,
    RNNDrop,
    Shakeout,
    ShakeShake,
    SparseVariational,
    SparseVariationalJoint,
    Standout,
    StochasticPooling,
    Stream,
    TargetedUnits,
    TargetedWeights,
    Uniform,
    Variant,
    VariationalA,
    VariationalB,
    WeightDropped,
    Zoneout,
)
from service.dropout.noise import Shape
from service.dropout.sparse_variational import without_noisy_weights
from service.dropout.variant import ActivationVariant, CellVariant, SampledProduct, WeightVariant
from service.dropout.windows import maximum

AROUND_ONE = (Gaussian, Uniform, VariationalB)
UNSCALED = (TargetedWeights, TargetedUnits, MaxDrop, MaskedMaxPooling, MaxPoolingDropout, RNNDrop, Zoneout)
SATURATING = (Alpha, FeatureAlpha)
SYMMETRIC = (*SATURATING, LayerDrop)  # their variance is the same at p and 1 - p, their mean is not
ONE_FOR_EACH_WEIGHT = (DropConnect, TargetedWeights, WeightDropped, SparseVariationalJoint)
BOTH = (0.1, 0.5)
UNEVEN = (0.1,)  # at p = 0.5, exchanging p and q or taking a root of p / q changes nothing


@dataclass(frozen=True)
class Mutant:
    """A faulty variant.

    Attributes:
        fault: What is wrong with it.
        type: The faulty class.
        law: What must catch it.
        says: How the law's message opens.
        rates: Where the fault shows.
    """

    fault: str
    type: type[Variant]
    law: Law
    says: str
    rates: tuple[float, ...] = BOTH

    def __repr__(self) -> str:
        return f"{self.type.name}: {self.fault} ({self.law.__name__})"


Fault = Callable[[type[Variant]], Iterator[Mutant]]


def rate_up_by_a_tenth(variant: type[Variant]) -> Iterator[Mutant]:
    if not variant.rated:
        return
    faulty = _at_rate(variant, lambda p: 1.1 * p)
    if issubclass(variant, UNSCALED):  # p q hardly moves around a half, the mean does
        yield Mutant("rate +10 %", faulty, laws.the_mean_is_its_closed_form, "mean is")
        return
    yield Mutant("rate +10 %", faulty, laws.the_variance_is_its_closed_form, "variance is")


def keep_and_drop_exchanged(variant: type[Variant]) -> Iterator[Mutant]:
    if not variant.rated:
        return
    faulty = _at_rate(variant, lambda p: 1 - p)
    if issubclass(variant, (*SYMMETRIC, *UNSCALED)):
        yield Mutant("p and q exchanged", faulty, laws.the_mean_is_its_closed_form, "mean is", UNEVEN)
    else:
        yield Mutant("p and q exchanged", faulty, laws.the_variance_is_its_closed_form, "variance is", UNEVEN)
    if issubclass(variant, (*AROUND_ONE, SampledProduct)):
        return
    if issubclass(variant, DropBlock):
        return
    faulty = _with_noise(variant, lambda self, m: ~m if m.dtype == torch.bool else 1 / self.q - m)
    yield Mutant("mask inverted", faulty, laws.the_mean_is_its_closed_form, "mean is", UNEVEN)


def never_quite_off(variant: type[Variant]) -> Iterator[Mutant]:
    if not variant.rated:
        return
    faulty = _at_rate(variant, lambda p: max(p, 0.05))
    yield Mutant("rate never 0", faulty, laws.a_rate_of_zero_changes_nothing, "rate zero")


def missing_scale(variant: type[Variant]) -> Iterator[Mutant]:
    if issubclass(variant, (*AROUND_ONE, SampledProduct, DropBlock)) or not variant.rated:
        return
    if issubclass(variant, SATURATING):
        faulty = _derived(variant, apply=lambda self, x, noise: variant.apply(self, x, noise) / self.a)
    else:
        faulty = _with_noise(variant, lambda self, noise: noise * self.q)
    yield Mutant("missing scale", faulty, laws.the_mean_is_its_closed_form, "mean is")


def missing_mean_of_one(variant: type[Variant]) -> Iterator[Mutant]:
    if issubclass(variant, AROUND_ONE):
        faulty = _with_noise(variant, lambda self, noise: noise - 1)
        yield Mutant("missing mean 1", faulty, laws.the_mean_is_its_closed_form, "mean is")
        yield Mutant("missing mean 1", faulty, laws.a_rate_of_zero_changes_nothing, "rate zero")


def deviation_and_variance_confused(variant: type[Variant]) -> Iterator[Mutant]:
    law = laws.the_variance_is_its_closed_form
    if issubclass(variant, AROUND_ONE):
        faulty = _with_noise(variant, lambda self, noise: 1 + (noise - 1) * sqrt(self.p / self.q))
        yield Mutant("variance where deviation belongs", faulty, law, "variance is", UNEVEN)
    if issubclass(variant, SampledProduct):
        faulty = _derived(variant, apply=lambda self, mean, square, z: variant.apply(self, mean, square.square(), z))
        yield Mutant("variance where deviation belongs", faulty, law, "variance is")


def bias_forgotten(variant: type[Variant]) -> Iterator[Mutant]:
    """Leave the bias unmasked, as the DropConnect authors' own inference does: b² is lost."""
    law = laws.the_variance_is_its_closed_form
    if issubclass(variant, DropConnect):
        faulty = _with_noise(variant, lambda _, noise: torch.cat([noise[..., :-1], noise[..., -1:] * 0 + 1], -1))
        yield Mutant("b² lost", faulty, law, "variance is")
    if issubclass(variant, DropConnectSampled):
        faulty = _derived(variant, moments=lambda self, x, w, b: (self.mean(x, w, b), self.variance(x, w, None)))
        yield Mutant("b² lost", faulty, law, "variance is")


def bias_masked(variant: type[Variant]) -> Iterator[Mutant]:
    """Give the bias the noise that the paper keeps from it."""
    if issubclass(variant, (Fast, VariationalA)):
        faulty = _derived(variant, moments=lambda self, *given: DropConnectSampled(self.p).moments(*given))
        yield Mutant("b² gained", faulty, laws.the_variance_is_its_closed_form, "variance is")


def reversal_forgotten(variant: type[Variant]) -> Iterator[Mutant]:
    """Drop an input to 0 rather than to -c sign W."""
    if issubclass(variant, Shakeout):
        faulty = _derived(variant, apply=lambda self, weight, r: weight * r)
        yield Mutant("plain dropout", faulty, laws.the_variance_is_its_closed_form, "variance is")
        faulty = _derived(variant, apply=lambda self, weight, r: (weight + self.c * weight.sign()) * r)
        yield Mutant("c sign W not taken off", faulty, laws.the_mean_is_its_closed_form, "mean is")


def wrong_closed_forms(variant: type[Variant]) -> Iterator[Mutant]:
    pinned: dict[str, Any] = {}  # a sampled product draws from its closed forms: keep those that it draws from
    if not variant.rated:
        return
    if issubclass(variant, SampledProduct):
        pinned["moments"] = lambda self, *given: variant(p=self.p).moments(*given)
    faulty = _derived(variant, mean=lambda self, *given: variant.mean(self, *given) * self.q, **pinned)
    yield Mutant("mean of the form without 1/q", faulty, laws.the_mean_is_its_closed_form, "mean is")
    faulty = _derived(variant, variance=lambda self, *given: variant.variance(self, *given) * self.q**2, **pinned)
    yield Mutant("variance of the form without 1/q", faulty, laws.the_variance_is_its_closed_form, "variance is")
    if issubclass(variant, SATURATING):
        faulty = _derived(variant, mean=lambda self, x: x)
        yield Mutant("mean x", faulty, laws.the_mean_is_its_closed_form, "mean is")


def sharing_widened(variant: type[Variant]) -> Iterator[Mutant]:
    """Along every axis where noise is drawn apart, draw once for all."""
    size = draw(variant(), stream(1)).shape
    for axis in range(2, len(size)):
        if size[axis] == 1:
            continue
        faulty = _with_noise(variant, lambda _, noise, axis=axis: noise.narrow(axis, 0, 1).expand_as(noise))
        if issubclass(variant, ONE_FOR_EACH_WEIGHT) and axis == 3:  # one draw for all weights of a unit
            yield Mutant("shared by a unit's weights", faulty, laws.the_variance_is_its_closed_form, "variance is")
            continue
        yield Mutant(f"shared along axis {axis}", faulty, laws.noise_is_shared_as_declared, "sharing: correlation")
        yield Mutant(f"shared along axis {axis}", faulty, laws.a_linear_layer_after_it_covaries, "linear: covariance")


def sharing_narrowed(variant: type[Variant]) -> Iterator[Mutant]:
    """Along every axis where one draw serves all, draw apart."""
    sharing, linear = laws.noise_is_shared_as_declared, laws.a_linear_layer_after_it_covaries
    shape = noise_shape(variant())
    size = draw(variant(), stream(1)).shape[2:]
    if issubclass(variant, CellVariant):  # columns are never shared
        shape, size = shape[:1], size[:1]
    for axis, (drawn, wanted) in enumerate(zip(size, shape, strict=False)):
        if drawn == wanted or issubclass(variant, MaxDrop):  # one element alone takes part in each of its draws
            continue
        faulty = _drawing(variant, _apart(variant, axis))
        if issubclass(variant, TargetedUnits):  # weights of a unit drawn apart leave units uncorrelated
            yield Mutant("apart within a unit", faulty, laws.the_variance_is_its_closed_form, "variance is")
            continue
        yield Mutant(f"apart along axis {axis + 2}", faulty, sharing, "sharing: correlation")
        yield Mutant(f"apart along axis {axis + 2}", faulty, linear, "linear: covariance")


def rows_confused(variant: type[Variant]) -> Iterator[Mutant]:
    faulty = _with_numbers(variant, lambda numbers: replace(numbers, rows=numbers.rows or range(ROWS)))
    yield Mutant("rows apart in scope pass", faulty, laws.rows_share_one_network_in_scope_pass, "pass scope: the noise")
    shared = _drawing(
        variant,
        lambda self, numbers, shape: variant.draw(self, replace(numbers, rows=None), shape).repeat_interleave(
            len(numbers.rows or [0]), dim=1
        ),
    )
    yield Mutant("rows share in scope row", shared, laws.rows_are_independent_in_scope_row, "row scope: correlation")
    faulty = _with_numbers(variant, lambda each: replace(each, rows=each.rows and range(len(each.rows))))
    yield Mutant("rows counted from the first", faulty, laws.a_row_depends_on_its_index_only, "row index")


def rows_covary_wrongly(variant: type[Variant]) -> Iterator[Mutant]:
    """Change the sign of every second row's noise around its mean, which leaves each row's own moments alone."""
    law, says = laws.rows_share_one_network_in_scope_pass, "pass scope: rows: covariance"
    if issubclass(variant, SampledProduct):
        signs = torch.tensor([1.0, -1.0, 1.0])[:, None]
        faulty = _derived(variant, apply=lambda self, mean, square, z: variant.apply(self, mean, square, z * signs))
        yield Mutant("rows against each other", faulty, law, says)
    if issubclass(variant, AROUND_ONE) and issubclass(variant, ActivationVariant):
        signs = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
        faulty = _derived(variant, apply=lambda self, x, noise: variant.apply(self, x, 1 + (noise - 1) * signs))
        yield Mutant("rows against each other", faulty, law, says)


def passes_confused(variant: type[Variant]) -> Iterator[Mutant]:
    pairs = _with_noise(variant, lambda _, noise: noise[torch.arange(len(noise)) // 2])
    yield Mutant("two passes share a network", pairs, laws.passes_are_independent, "passes: correlation at lag 1")
    relative = _with_numbers(variant, lambda numbers: replace(numbers, first_pass=0))
    yield Mutant("every chunk starts at pass 0", relative, laws.grouping_of_passes_changes_nothing, "grouping")
    if not issubclass(variant, (*SATURATING, Cutout)):
        scaled = _with_noise(variant, lambda _, noise: noise / noise.mean())
        yield Mutant("scaled by the chunk's own mean", scaled, laws.grouping_of_passes_changes_nothing, "grouping")


def seed_or_site_ignored(variant: type[Variant]) -> Iterator[Mutant]:
    law = laws.a_seed_is_reproducible_and_its_own
    faulty = _with_numbers(variant, lambda numbers: replace(numbers, seed=0))
    yield Mutant("seed ignored", faulty, law, "seed: 3 and 4")
    faulty = _with_numbers(variant, lambda numbers: replace(numbers, seed=int(torch.randint(1 << 60, ()))))
    yield Mutant("seeded afresh", faulty, law, "seed: the same seed")
    faulty = _with_numbers(variant, lambda numbers: replace(numbers, site="noise"))
    yield Mutant("site ignored", faulty, laws.a_site_has_noise_of_its_own, "site: two sites")


def growth_ignored(variant: type[Variant]) -> Iterator[Mutant]:
    if issubclass(variant, WeightVariant):
        return
    law = laws.growing_leaves_the_shorter_noise_unchanged
    keyed = _drawing(
        variant, lambda self, each, shape: variant.draw(self, replace(each, site=f"{each.site}{shape}"), shape)
    )
    yield Mutant("keyed by the length too", keyed, law, "growth")
    if issubclass(variant, CellVariant):
        yield from _steps_confused(variant)
        return
    if max(variant().draw(stream(1), longer).numel() for _, _, longer in growths_of(variant)) > 1:
        faulty = _with_numbers(variant, lambda numbers: replace(numbers, growing=frozenset()))
        yield Mutant("growth ignored", faulty, law, "growth")
    reversed_ = _with_noise(variant, lambda _, noise: noise.flip(-1))
    if variant().draw(stream(1), (2, 3)).shape[-1] > 1:
        yield Mutant("counted from the far end", reversed_, law, "growth")


def _steps_confused(variant: type[CellVariant]) -> Iterator[Mutant]:
    law = laws.growing_leaves_the_shorter_noise_unchanged
    if variant().each_step:
        faulty = _with_numbers(variant, lambda numbers: replace(numbers, growing=frozenset()))
        yield Mutant("growth ignored", faulty, law, "growth")
        reversed_ = _with_noise(variant, lambda _, noise: noise.flip(2))
        yield Mutant("counted from the last step", reversed_, law, "growth")


def memory_confused(variant: type[Variant]) -> Iterator[Mutant]:
    """Drop to 0 what should keep its old value; exchange old and new; rescale."""
    if not issubclass(variant, Zoneout):
        return
    law = laws.the_mean_is_its_closed_form
    faulty = _derived(variant, apply=lambda self, new, old, z: (1 - z) * new)
    yield Mutant("dropped to 0", faulty, law, "mean is")
    faulty = _derived(variant, apply=lambda self, new, old, z: z * new + (1 - z) * old)
    yield Mutant("old and new exchanged", faulty, law, "mean is", UNEVEN)
    faulty = _derived(variant, apply=lambda self, new, old, z: variant.apply(self, new, old, z) / self.q)
    yield Mutant("rescaled", faulty, law, "mean is")
    faulty = _derived(variant, variance=lambda self, new, old: new.square() * (self.p * self.q))
    yield Mutant("variance p q h̃²", faulty, laws.the_variance_is_its_closed_form, "variance is")


def gate_confused(variant: type[Variant]) -> Iterator[Mutant]:
    """Keep what should be dropped, as libraries do; rescale by 1 / π; gate by a; forget β."""
    if not issubclass(variant, Standout):
        return
    mean, rows = laws.the_mean_is_its_closed_form, laws.rows_share_one_network_in_scope_pass
    inverted = _derived(variant, apply=lambda self, u, a, v: a * (v >= self.kept(u)))
    yield Mutant("keep and drop exchanged", inverted, mean, "mean is")
    scaled = _derived(variant, apply=lambda self, u, a, v: variant.apply(self, u, a, v) / self.kept(u))
    yield Mutant("scaled by 1 / π", scaled, mean, "mean is")
    yield Mutant("gated by a", _derived(variant, apply=lambda self, u, a, v: a * (v < self.kept(a))), mean, "mean is")
    shifted = _derived(variant, kept=lambda self, u: torch.sigmoid(self.alpha * u))
    faulty = _derived(variant, apply=lambda self, u, a, v: shifted().apply(u, a, v))
    yield Mutant("β forgotten", faulty, mean, "mean is")
    turned = _derived(variant, apply=lambda self, u, a, v: variant.apply(self, u, a, (v + _thirds(v, a)) % 1))
    yield Mutant("rows at other places of v", turned, rows, "pass scope: rows: covariance")
    spread = _derived(variant, variance=lambda self, u, a: self.kept(u) * a.square())
    yield Mutant("variance π a²", spread, laws.the_variance_is_its_closed_form, "variance is")


def mix_confused(variant: type[Variant]) -> Iterator[Mutant]:
    if not issubclass(variant, ShakeShake):
        return
    signed = _derived(variant, draw=lambda self, numbers, shape: 2 * variant.draw(self, numbers, shape) - 1)
    yield Mutant("α from -1", signed, laws.the_mean_is_its_closed_form, "mean is")
    summed = _derived(variant, apply=lambda self, one, other, alpha: alpha * one + alpha * other)
    yield Mutant("both by α", summed, laws.the_variance_is_its_closed_form, "variance is")
    coin = _derived(variant, draw=lambda self, numbers, shape: variant.draw(self, numbers, shape).round())
    yield Mutant("one branch alone", coin, laws.the_variance_is_its_closed_form, "variance is")
    signs = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    turned = _derived(variant, apply=lambda self, a, b, m: variant.apply(self, a, b, 0.5 + (m - 0.5) * signs))
    law = laws.rows_share_one_network_in_scope_pass
    yield Mutant("rows against each other", turned, law, "pass scope: rows: covariance")


def learned_noise_confused(variant: type[Variant]) -> Iterator[Mutant]:
    """Sample the pruned network; take log σ² for log σ; take it for log α."""
    if not issubclass(variant, (SparseVariational, SparseVariationalJoint)):
        return
    faults: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
        "pruned": lambda weight, s: (without_noisy_weights(weight, s), s),
        "log σ": lambda weight, s: (weight, 2 * s),
        "log α": lambda weight, s: (weight, s + weight.square().log()),
    }
    for fault, change in faults.items():
        if issubclass(variant, SparseVariational):
            faulty = _derived(
                variant, moments=lambda self, x, w, b, s, c=change: variant.moments(self, x, c(w, s)[0], b, c(w, s)[1])
            )
        else:
            faulty = _derived(
                variant, apply=lambda self, w, noise, s, c=change: variant.apply(self, c(w, s)[0], noise, c(w, s)[1])
            )
        law = laws.the_mean_is_its_closed_form if fault == "pruned" else laws.the_variance_is_its_closed_form
        yield Mutant(fault, faulty, law, "mean is" if fault == "pruned" else "variance is")


def pool_confused(variant: type[Variant]) -> Iterator[Mutant]:
    """Rescale the winner; let a dropped input never win; choose evenly, or the largest; turn rows apart."""
    mean, rows = laws.the_mean_is_its_closed_form, laws.rows_share_one_network_in_scope_pass
    if issubclass(variant, MaxPoolingDropout):
        scaled = _derived(variant, apply=lambda self, x, m, w: variant.apply(self, x, m, w) / self.q)
        yield Mutant("winner scaled by 1 / q", scaled, mean, "mean is")
        out = _derived(variant, apply=lambda self, x, m, w: maximum(torch.where(m > 0, x, 0.1), w))
        yield Mutant("dropped to another number than 0", out, mean, "mean is", (0.5,))
        after = _derived(variant, apply=lambda self, x, m, w: maximum(x, w) * m[..., ::3])
        yield Mutant("dropped after pooling", after, mean, "mean is")
    if issubclass(variant, MaskedMaxPooling):
        before = _derived(
            variant, apply=lambda self, x, m, w: maximum(x * m.repeat_interleave(3, -1), w).clamp_min(0.2)
        )
        yield Mutant("dropped to another number than 0", before, mean, "mean is")
    if issubclass(variant, StochasticPooling):
        even = _derived(variant, apply=lambda self, x, u, w: variant.apply(self, x.sign(), u, w) * maximum(x, w))
        yield Mutant("the largest always", even, laws.the_variance_is_its_closed_form, "variance is")
        softened = _derived(variant, apply=lambda self, x, u, w: variant.apply(self, x.sqrt(), u, w).square())
        yield Mutant("drawn by √a", softened, mean, "mean is")
        turned = _derived(variant, apply=lambda self, x, u, w: variant.apply(self, x, (u + _thirds(u, x)) % 1, w))
        yield Mutant("rows at other places of u", turned, rows, "pass scope: rows: covariance")
        wrong = _derived(variant, variance=lambda self, x, w: variant.mean(self, x.square(), w))
        yield Mutant("variance without its mean", wrong, laws.the_variance_is_its_closed_form, "variance is")


def squares_confused(variant: type[Variant]) -> Iterator[Mutant]:
    """Scale by the share of all passes that was kept, or not at all; open other squares than the closed forms know."""
    mean, spread = laws.the_mean_is_its_closed_form, laws.the_variance_is_its_closed_form

    def acting(fault: str, law: Law, act: Callable[[Any, Tensor, Tensor], Tensor]) -> Mutant:
        return Mutant(fault, _derived(variant, apply=act), law, "mean is" if law is mean else "variance is")

    if issubclass(variant, DropBlock):
        narrow = _derived(variant, gamma=lambda self, height, width: self.p / self.block_size**2)
        yield acting("missing scale", mean, lambda self, x, u: variant.apply(self, x, u) * self._kept(x))
        yield acting("scaled by the batch's share", mean, lambda self, x, u: replace(self, even=1.0).mean(x) / x
                     * variant.apply(self, x, u))  # fmt: skip
        yield acting("seeds at p / block_size²", spread, lambda self, x, u: narrow(**self.parameters()).apply(x, u))
        yield acting("seeds without squares", spread, lambda self, x, u: variant(self.p, 1.0).apply(x, u))
        faulty = _derived(variant, variance=lambda self, x: x.square() * (self.p / self.q))
        yield Mutant("variance x² p / q", faulty, spread, "variance is")
    if issubclass(variant, Cutout):
        yield acting("side up by one", mean, lambda self, x, word: variant(self.size + 1).apply(x, word))
        yield acting("rescaled", mean, lambda self, x, word: variant.apply(self, x, word) / (1 - self._covered(x)))
        faulty = _derived(variant, variance=lambda self, x: x.square() * self._covered(x))
        yield Mutant("variance P x²", faulty, spread, "variance is")


FAULTS: tuple[Fault, ...] = (
    rate_up_by_a_tenth,
    keep_and_drop_exchanged,
    never_quite_off,
    missing_scale,
    missing_mean_of_one,
    deviation_and_variance_confused,
    bias_forgotten,
    bias_masked,
    reversal_forgotten,
    wrong_closed_forms,
    sharing_widened,
    sharing_narrowed,
    rows_confused,
    rows_covary_wrongly,
    passes_confused,
    seed_or_site_ignored,
    growth_ignored,
    gate_confused,
    mix_confused,
    learned_noise_confused,
    pool_confused,
    squares_confused,
    memory_confused,
)


def mutants(variant: type[Variant]) -> Iterator[Mutant]:
    """Make every mutant that fits the variant."""
    for fault in FAULTS:
        yield from fault(variant)


def _thirds(noise: Tensor, x: Tensor) -> Tensor:
    return torch.arange(ROWS)[:, None, None] / 3 if noise.dim() > x.dim() else torch.zeros(())


def _derived(variant: type[Variant], **methods: Any) -> type[Variant]:
    return type(f"Faulty{variant.__name__}", (variant,), methods)


def _drawing(variant: type[Variant], change: Callable[[Any, Stream, Shape], Tensor]) -> type[Variant]:
    return _derived(variant, draw=change)


def _with_noise(variant: type[Variant], change: Callable[[Any, Tensor], Tensor]) -> type[Variant]:
    """Derive a class whose noise is changed once drawn."""
    return _drawing(variant, lambda self, numbers, shape: change(self, variant.draw(self, numbers, shape)))


def _with_numbers(variant: type[Variant], change: Callable[[Stream], Stream]) -> type[Variant]:
    """Derive a class that draws from other numbers than it was given."""
    return _drawing(variant, lambda self, numbers, shape: variant.draw(self, change(numbers), shape))


def _at_rate(variant: type[Variant], change: Callable[[float], float]) -> type[Variant]:
    """Derive a class that draws, or takes its product's moments, at another rate than its closed forms say."""

    def other(self: Any) -> Any:
        return variant(**{**self.parameters(), "p": change(self.p)})

    if issubclass(variant, SampledProduct):
        return _derived(variant, moments=lambda self, *given: other(self).moments(*given))
    if issubclass(variant, DropBlock):
        return _derived(variant, apply=lambda self, x, noise: other(self).apply(x, noise))
    return _drawing(variant, lambda self, numbers, shape: other(self).draw(numbers, shape))


def _apart(variant: type[Variant], axis: int) -> Callable[[Any, Stream, Shape], Tensor]:
    def draw_apart(self: Variant, numbers: Stream, shape: Shape) -> Tensor:
        sites = [f"{numbers.site}/{index}" for index in range(shape[axis])]
        return torch.cat([variant.draw(self, replace(numbers, site=site), shape) for site in sites], dim=axis + 2)

    return draw_apart
