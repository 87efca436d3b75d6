"""What is computed from passes that give an output's conditional mean and variance; it does not know networks or noise.

By the law of total variance, with m_t and v_t the mean and variance that pass t gives when its last site is integrated:

    mean       (1/N) Σ m_t
    variance   Σ (m_t - m̄)² / (N - 1) + (1/N) Σ v_t

Both are unbiased, and vary less from seed to seed than those of sampled outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.errors import InvalidPlan, InvalidQuantity
from service.moments import Moments
from service.quantities import needs_samples
from service.signature import Activation, Output, Task


def check_linear(output: Output, quantities: Sequence[str]) -> None:
    """Refuse an output, or a quantity, that conditional moments do not give.

    Raises:
        InvalidPlan: Something that is not linear makes the served value of the raw one.
        InvalidQuantity: A quantity needs the passes' own values.
    """
    if reason := _not_linear(output):
        raise InvalidPlan(
            f"output {output.name!r}: estimator 'integrated' needs a linear output, and {reason}; use estimator "
            "'sampled'"
        )
    if needs_samples(quantities):
        named = ", ".join(name for name in quantities if needs_samples([name]))
        raise InvalidQuantity(
            f"output {output.name!r}: {named} would be those of conditional means, which estimator 'integrated' takes "
            "in place of the passes' values; use estimator 'sampled'"
        )


def _not_linear(output: Output) -> str:
    if output.activation is not Activation.NONE:
        return f"{output.activation} follows it"
    if output.exp:
        return "an exponential follows it"
    if output.task is Task.GAUSSIAN:
        return "its noise variance is the exponential of a log-variance"
    return "" if output.task is Task.REGRESSION else f"a {output.task}'s entropies are those of its passes"


class ConditionalAccumulator:
    """The statistics of one linear output over passes whose last site is integrated.

    Args:
        output: What the output means; `check_linear` passes it.
        quantities: What to compute.
    """

    def __init__(self, output: Output, quantities: Sequence[str]) -> None:
        self._output = output
        self._quantities = tuple(quantities)
        self._means: Moments | None = None
        self._variances: Moments | None = None

    def add(self, mean: Tensor, variance: Tensor) -> None:
        """Take a chunk of raw conditional means and variances [S, B, …]."""
        means = Moments.of(mean.double() * self._output.scale + self._output.shift)
        variances = Moments.of(variance.double() * self._output.scale**2)
        self._means = means if self._means is None else self._means.merge(means)
        self._variances = variances if self._variances is None else self._variances.merge(variances)

    def finish(self, deterministic: Tensor | None = None) -> dict[str, Tensor]:
        """Return the quantities by name, each [B, …] on the CPU; `standard_error` is that of the mean given here.

        Args:
            deterministic: The raw output with everything off [B, …], where `deterministic` was asked for.
        """
        means, variances = self._means, self._variances
        assert means is not None, "finish comes after add"
        assert variances is not None
        found = {"mean": means.mean, "variance": means.variance + variances.mean}
        found["standard_error"] = means.standard_error
        if self._output.noise_precision is not None:
            found["noise_variance"] = torch.full_like(means.mean, 1 / self._output.noise_precision)
            found["total_variance"] = found["variance"] + found["noise_variance"]
        if deterministic is not None:
            found["deterministic"] = deterministic.double() * self._output.scale + self._output.shift
        return {name: found[name].float().cpu() for name in self._quantities}
