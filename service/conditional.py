"""What is computed from passes that give an output's conditional mean and variance; it does not know networks or noise.

By the law of total variance, with m_t and v_t the mean and variance that pass t gives when its last site is integrated:

    mean       (1/N) Σ m_t
    variance   Σ (m_t - m̄)² / (N - 1) + (1/N) Σ v_t

Both are unbiased, and vary less from seed to seed than those of sampled outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.errors import InvalidPlan, InvalidQuantity
from service.moments import Moments
from service.quantities import REACHED, needs_samples, passes_used
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
        self._joint: JointMoments | None = None

    def add(self, mean: Tensor, variance: Tensor) -> None:
        """Take a chunk of raw conditional means and variances [S, B, …]."""
        scale = self._output.scale
        own = JointMoments.of(mean.double() * scale + self._output.shift, variance.double() * scale**2)
        self._joint = own if self._joint is None else self._joint.merge(own)

    def finish(self, deterministic: Tensor | None = None) -> dict[str, Tensor]:
        """Return the quantities by name, each [B, …]; `standard_error` is that of the mean given here.

        Args:
            deterministic: The raw output with everything off [B, …], where `deterministic` was asked for.
        """
        means = self._taken().means
        found = {"mean": means.mean, "variance": self._taken().variance}
        if any(name in self._quantities for name in ("standard_error", *REACHED)):
            found |= {"variance_error": self.spread()[2], "passes_used": passes_used(means)}
            found["standard_error"] = means.standard_error
        if self._output.noise_precision is not None:
            found["noise_variance"] = torch.full_like(means.mean, 1 / self._output.noise_precision)
            found["total_variance"] = found["variance"] + found["noise_variance"]
        if deterministic is not None:
            found["deterministic"] = deterministic.double() * self._output.scale + self._output.shift
        served = {name: found[name] for name in self._quantities}
        return {name: x if x.dtype == torch.int64 else x.float() for name, x in served.items()}

    def spread(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance, and the variance's relative standard error, of the passes so far [B, …] each."""
        joint = self._taken()
        return joint.means.mean, joint.variance, joint.variance_standard_error / joint.variance

    def of_rows(self, rows: Tensor) -> "ConditionalAccumulator":
        """Return the statistics of some rows, named by truth values [B]."""
        chosen = ConditionalAccumulator(self._output, self._quantities)
        chosen._joint = self._taken().of_rows(rows)
        return chosen

    def _taken(self) -> "JointMoments":
        assert self._joint is not None, "add comes first"
        return self._joint


@dataclass(frozen=True)
class JointMoments:
    """The moments of the passes' conditional means m and variances v, and how they vary together.

    Attributes:
        means: The moments of m.
        variances: The moments of v.
        c11: Σ (m - m̄)(v - v̄).
        c21: Σ (m - m̄)²(v - v̄).
    """

    means: Moments
    variances: Moments
    c11: Tensor
    c21: Tensor

    @staticmethod
    def of(mean: Tensor, variance: Tensor) -> "JointMoments":
        """Return those of a chunk of passes [S, B, …]."""
        means, variances = Moments.of(mean), Moments.of(variance)
        m, v = mean - means.mean, variance - variances.mean
        return JointMoments(means, variances, (m * v).sum(0), (m.square() * v).sum(0))

    def merge(self, other: "JointMoments") -> "JointMoments":
        """Return those of both sets of passes together."""
        means, variances = self.means.merge(other.means), self.variances.merge(other.variances)
        c11, c21 = torch.zeros_like(self.c11), torch.zeros_like(self.c21)
        for part in (self, other):
            m, v = part.means.mean - means.mean, part.variances.mean - variances.mean
            c11 = c11 + part.c11 + part.means.count * m * v
            c21 = c21 + part.c21 + 2 * m * part.c11 + v * part.means.m2 + part.means.count * m.square() * v
        return JointMoments(means, variances, c11, c21)

    def of_rows(self, rows: Tensor) -> "JointMoments":
        """Return those of some rows."""
        return JointMoments(self.means.of_rows(rows), self.variances.of_rows(rows), self.c11[rows], self.c21[rows])

    @property
    def variance(self) -> Tensor:
        """The unbiased variance, by the law of total variance."""
        return self.means.variance + self.variances.mean

    @property
    def variance_standard_error(self) -> Tensor:
        """Its standard error: √(Var s²_m + (Var v + 2 Cov((m - m̄)², v)) / N)."""
        n = self.means.count
        between = self.means.variance_standard_error.square()
        return (between + (self.variances.variance + 2 * self.c21 / n) / n).clamp_min(0).sqrt()
