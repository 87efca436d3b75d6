"""Moments of the concrete relaxation by another way than the service's: quadrature over u between its bends."""

from itertools import pairwise
from math import exp, log

from scipy.integrate import quad


def relaxed_moments(p: float, t: float) -> tuple[float, float]:
    """Return the mean and variance of z = 1 - sigm((logit p + logit u) / t) for u ~ U(0, 1)."""
    if p == 0:
        return 1.0, 0.0

    def z(u: float) -> float:
        a = (log(p / (1 - p)) + log(u / (1 - u))) / t
        return 1 / (1 + exp(a)) if a < 700 else 0.0

    bends = [0.0, *sorted({1 - p + sign * width * t * p * (1 - p) for sign in (-1, 1) for width in (0, 1, 3)}), 1.0]
    bends = [each for each in bends if 0 <= each <= 1]
    pairs = list(pairwise(bends))
    first, second = (
        sum(quad(lambda u, k=k: z(u) ** k, a, b, epsabs=1e-13, epsrel=1e-13)[0] for a, b in pairs) for k in (1, 2)
    )
    return first, second - first**2
