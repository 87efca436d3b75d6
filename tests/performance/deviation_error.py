"""How far a standard deviation from N passes is from the network's own, by its kurtosis and by trial.

With κ the kurtosis of an output's passes, a variance from N of them has the relative standard error √((κ - 1) / N), and
a standard deviation half of it. The error of many rows and outputs is the root of the mean of its squares:

    error = √(mean(κ - 1) / N) / 2        N = mean(κ - 1) / (4 error²)

It does not know clocks, but for how long it may try.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timing import seconds
from torch import Tensor

from service import Predictor

LIMIT = 0.05
ALLOWED = 1.1 * LIMIT  # what trials may show: over 40 seeds the error is itself known to a tenth
SEEDS = 40
_ROWS, _LEAST, _MOST = 4, 2_000, 20_000  # of the reference: the first rows, and how many passes
_BUDGET_S = 10.0
_CHUNK = 1_000
_PILOT = 16
_FIRST_SEED = 1 << 20  # no other part draws from here on


@dataclass(frozen=True)
class Reference:
    """A long run over the first rows, to which shorter ones are compared.

    Attributes:
        predictor: The network.
        x: The rows.
        deviation: Their standard deviations [R, …].
        excess: The mean of κ - 1 over rows and outputs.
        passes: How many passes it is of.
    """

    predictor: Predictor
    x: Tensor
    deviation: Tensor
    excess: float
    passes: int

    @staticmethod
    def of(predictor: Predictor, x: Tensor) -> "Reference":
        """Run passes for the time that there is: of the first rows, or of the first alone where passes are slow."""
        x = x[:_ROWS]
        if (pass_s := _pass_s(predictor, x)) * _LEAST > _BUDGET_S:
            x, pass_s = x[:1], _pass_s(predictor, x[:1])
        chunks = int(min(max(_BUDGET_S / pass_s, _LEAST), _MOST)) // _CHUNK
        centre = predictor.predict(x, passes=_CHUNK).mean.double().unsqueeze(1)
        sums = torch.zeros(4, *centre.squeeze(1).shape, dtype=torch.float64)
        for seed in range(_FIRST_SEED, _FIRST_SEED + chunks):
            samples = predictor.predict(x, passes=_CHUNK, seed=seed, quantities=["samples"])["samples"]
            sums += torch.stack([(samples.double() - centre).pow(power).sum(1) for power in (1, 2, 3, 4)])
        m1, m2, m3, m4 = sums / (chunks * _CHUNK)
        variance, fourth = m2 - m1.square(), m4 - 4 * m1 * m3 + 6 * m1.square() * m2 - 3 * m1.pow(4)
        excess = (fourth / variance.square() - 1).mean().item()
        return Reference(predictor, x, variance.sqrt(), excess, chunks * _CHUNK)

    @property
    def own_error(self) -> float:
        """How far its own standard deviations are from the network's."""
        return math.sqrt(self.excess / self.passes) / 2

    @property
    def needed(self) -> int:
        """How many passes the limit needs."""
        return math.ceil(self.excess / (4 * LIMIT**2))

    def error(self, **asked: Any) -> float:
        """Return the root of the mean of squares of the relative errors that answers have, over seeds."""
        squares = []
        for seed in range(SEEDS):
            variance = self.predictor.predict(self.x, seed=seed, **asked).variance.double()
            squares.append((variance.sqrt() / self.deviation - 1).square().mean())
        return torch.stack(squares).mean().sqrt().item()


def enough(error: Callable[[int], float], passes: int | None = None) -> tuple[int, float]:
    """Return a number of passes whose error keeps the limit, and the error.

    Args:
        error: What some number of passes shows by trial.
        passes: How many are expected to do; None tries a few to tell.
    """
    passes = passes or max(2, math.ceil(_PILOT * (error(_PILOT) / LIMIT) ** 2))
    while (shown := error(passes)) > ALLOWED:
        passes = math.ceil(passes * (shown / LIMIT) ** 2)
    return passes, shown


def _pass_s(predictor: Predictor, x: Tensor) -> float:
    predictor.predict(x, passes=_CHUNK // 10)
    return seconds(lambda: predictor.predict(x, passes=_CHUNK // 10, seed=None)) / (_CHUNK // 10)
