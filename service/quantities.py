"""What is computed from the passes of one output, as its task defines it; it does not know networks or noise.

Activation and scaling act inside every pass. Entropies are in nats and are averaged as they are, never clipped. Sums
run in float64; what is served is float32, and labels are int64.

    entropy              H[p̄]                           of the mean probabilities
    expected_entropy     (1/N) Σ H[p_t]                 the data's own uncertainty
    mutual_information   H[p̄] - (1/N) Σ H[p_t]          the network's (Houlsby et al. 2011; Gal 2016)
    variation_ratio      1 - f / N                      f: how many passes chose the most chosen class
    noise_variance       1/τ, or (1/N) Σ exp(s_t)       of a Gaussian output's log-variance s (Kendall & Gal 2017)
    total_variance       variance + noise_variance      the law of total variance
    variance_error       √(Var[variance]) / variance    its relative standard error; not a number where it is 0
    passes_used          N                              of each row, which a tolerance may have ended
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import log
from types import MappingProxyType

import torch
from torch import Tensor

from service.errors import InvalidQuantity
from service.moments import Moments, Spread
from service.signature import Activation, Output, Task

_MOMENTS = ("mean", "variance")
_ENTROPIES = ("entropy", "expected_entropy", "mutual_information")
_NOISE = ("noise_variance", "total_variance")
REACHED = ("variance_error", "passes_used")
_ANY_TASK = ("standard_error", *REACHED, "deterministic", "samples")
DEFAULTS: Mapping[Task, tuple[str, ...]] = MappingProxyType(
    {
        Task.CLASSIFICATION: (*_MOMENTS, "label", "probability", *_ENTROPIES, "variation_ratio"),
        Task.MULTILABEL: (*_MOMENTS, *_ENTROPIES),
        Task.REGRESSION: _MOMENTS,
        Task.GAUSSIAN: (*_MOMENTS, *_NOISE),
    }
)
_QUANTILE = re.compile(r"quantile_(0?\.\d+)")


def known_noise(output: Output) -> bool:
    """Tell whether the observation noise is known: from τ, a log-variance, or the class probabilities themselves."""
    return output.task is not Task.REGRESSION or output.noise_precision is not None


def defaults(output: Output) -> tuple[str, ...]:
    """Return the quantities that come unasked."""
    extra = _NOISE if output.task is Task.REGRESSION and output.noise_precision is not None else ()
    return DEFAULTS[output.task] + extra


def check(output: Output, names: Sequence[str]) -> tuple[str, ...]:
    """Return the defaults and then what was asked for, each once.

    Raises:
        InvalidQuantity: A name is unknown, or not this output's.
    """
    for name in names:
        if name not in (*defaults(output), *_ANY_TASK) and quantile_of(name) is None:
            known = ", ".join((*defaults(output), *_ANY_TASK, "quantile_<q>"))
            raise InvalidQuantity(f"output {output.name!r} ({output.task}) has no quantity {name!r}; it has {known}")
    return tuple(dict.fromkeys((*defaults(output), *names)))


@lru_cache(maxsize=256)
def quantile_of(name: str) -> float | None:
    """Return q of `quantile_<q>`, or None where the name is no quantile strictly between 0 and 1."""
    match = _QUANTILE.fullmatch(name)
    q = float(match[1]) if match else 0.0
    return q if 0 < q < 1 else None


def needs_samples(names: Sequence[str]) -> bool:
    """Tell whether every pass must be kept."""
    return any(name == "samples" or quantile_of(name) is not None for name in names)


class Accumulator:
    """The statistics of one output over passes that come in chunks.

    Args:
        output: What the output means.
        quantities: What to compute, as `check` returned it.
    """

    def __init__(self, output: Output, quantities: Sequence[str]) -> None:
        self._output = output
        self._quantities = tuple(quantities)
        self._kind = Moments if any(name in self._quantities for name in REACHED) else Spread
        self._moments: Spread | None = None
        self._expected_entropy: Tensor | None = None
        self._noise: Tensor | None = None
        self._votes: Tensor | None = None
        self._kept: list[Tensor] = []

    def __copy__(self) -> "Accumulator":
        twin = object.__new__(Accumulator)  # what `copy` makes by itself takes it ten times as long
        twin.__dict__.update(self.__dict__)
        return twin

    def add(self, raw: Tensor) -> None:
        """Take a chunk of raw outputs [S, B, …]."""
        values, log_variance = self._served(raw)
        own = self._kind.of(values)
        self._moments = own if self._moments is None else self._moments.merge(own)
        if needs_samples(self._quantities):
            self._kept = [*self._kept, values.float().cpu()]  # a copy made before has its own
        if "expected_entropy" in self._quantities:
            self._expected_entropy = _plus(self._expected_entropy, self._entropy(values, 1).sum(0))
        if "variation_ratio" in self._quantities:
            axis = self._axis(1)
            chosen = torch.nn.functional.one_hot(values.argmax(axis), values.shape[axis])
            self._votes = _plus(self._votes, chosen.sum(0))
        if log_variance is not None:
            self._noise = _plus(self._noise, log_variance.exp().sum(0))

    def spread(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance, and the variance's relative standard error, of the passes so far [B, …] each."""
        moments = self._taken()
        assert isinstance(moments, Moments), "what a tolerance reaches is not among the quantities"
        return moments.mean, moments.variance, moments.variance_standard_error / moments.variance

    def of_rows(self, rows: Tensor) -> "Accumulator":
        """Return the statistics of some rows, named by truth values [B]."""
        chosen = Accumulator(self._output, self._quantities)
        chosen._moments = self._taken().of_rows(rows)
        chosen._expected_entropy = None if self._expected_entropy is None else self._expected_entropy[rows]
        chosen._noise = None if self._noise is None else self._noise[rows]
        chosen._votes = None if self._votes is None else self._votes[rows]
        chosen._kept = [each[:, rows.cpu()] for each in self._kept]
        return chosen

    def _taken(self) -> Spread:
        assert self._moments is not None, "add comes first"
        return self._moments

    def finish(self, deterministic: Tensor | None = None) -> dict[str, Tensor]:
        """Return the quantities by name, each [B, …]; what is kept of every pass is on the CPU.

        Args:
            deterministic: The raw output with everything off [B, …], where `deterministic` was asked for.
        """
        found = self._found(deterministic)
        served = {name: found[name] for name in self._quantities}
        return {name: x if x.dtype == torch.int64 else x.float() for name, x in served.items()}

    def _found(self, deterministic: Tensor | None) -> dict[str, Tensor]:
        moments = self._taken()
        found = {"mean": moments.mean, "variance": moments.variance}
        if "standard_error" in self._quantities:
            found["standard_error"] = moments.standard_error
        if any(name in self._quantities for name in REACHED):
            found |= {"variance_error": self.spread()[2], "passes_used": passes_used(moments)}
        if self._output.task is Task.CLASSIFICATION:
            found["probability"], found["label"] = moments.mean.max(self._axis(0))
        if self._expected_entropy is not None:
            found["entropy"] = self._entropy(moments.mean, 0)
            found["expected_entropy"] = self._expected_entropy / moments.count
            found["mutual_information"] = found["entropy"] - found["expected_entropy"]
        if self._votes is not None:
            found["variation_ratio"] = 1 - self._votes.amax(-1).double() / moments.count
        if "noise_variance" in self._quantities:
            found["noise_variance"] = self._noise_variance(moments)
            found["total_variance"] = moments.variance + found["noise_variance"]
        if deterministic is not None:
            found["deterministic"] = self._served(deterministic[None])[0][0]
        return found | self._from_samples()

    def _from_samples(self) -> dict[str, Tensor]:
        if not self._kept:
            return {}
        samples = torch.cat(self._kept).movedim(0, 1)
        levels = {name: q for name in self._quantities if (q := quantile_of(name)) is not None}
        return {"samples": samples} | {name: _quantile(samples, q) for name, q in levels.items()}

    def _served(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return each pass in served units (float64, or as it is), and its log-variance where it has one."""
        output = self._output
        if output.task is Task.REGRESSION and output.scale == 1 and output.shift == 0 and not output.exp:
            return raw, None
        values = raw.double()
        if output.task is Task.GAUSSIAN:
            values, log_variance = values.tensor_split(2, -1)
            return values * output.scale + output.shift, log_variance + 2 * log(abs(output.scale))
        if output.activation is Activation.SOFTMAX:
            values = values.softmax(self._axis(1))
        elif output.activation is Activation.SIGMOID:
            values = values.sigmoid()
        if output.task is Task.REGRESSION:
            values = values * output.scale + output.shift
            values = values.exp() if output.exp else values
        return values, None

    def _noise_variance(self, moments: Spread) -> Tensor:
        if self._noise is not None:
            return self._noise / moments.count
        assert self._output.noise_precision is not None
        return torch.full_like(moments.mean, 1 / self._output.noise_precision)

    def _entropy(self, p: Tensor, leading: int) -> Tensor:
        entropy: Tensor = torch.special.entr(p)
        if self._output.task is Task.MULTILABEL:
            entropy += torch.special.entr(1 - p)
            return entropy
        return entropy.sum(self._axis(leading))

    def _axis(self, leading: int) -> int:
        """Return the class axis behind this many axes in front of the batch."""
        axis = self._output.class_axis
        return axis + leading if axis >= 0 else axis


def passes_used(moments: Spread) -> Tensor:
    """Return the number of passes of each row [B]."""
    return torch.full((len(moments.mean),), moments.count, dtype=torch.int64)


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


def _quantile(samples: Tensor, q: float) -> Tensor:
    """Return the q-quantile over passes [B, …] of samples [B, N, …], interpolated linearly (Hyndman & Fan 1996, 7)."""
    ordered = samples.sort(1).values
    place = q * (samples.shape[1] - 1)
    low = int(place)
    high = min(low + 1, samples.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], place - low)
