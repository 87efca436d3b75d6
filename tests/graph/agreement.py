"""Whether two samples of passes have the same moments, covariances included."""

from torch import Tensor, cat

SIGMAS = 5


def assert_same_moments(mine: Tensor, theirs: Tensor) -> None:
    """Compare mean and variance of one row's passes [S, …], element by element and summed, within 5 standard errors."""
    found, expected = _moments(mine), _moments(theirs)
    for index in (0, 1):
        error = (found[index + 2].square() + expected[index + 2].square()).sqrt()
        assert ((found[index] - expected[index]).abs() <= SIGMAS * error + 1e-7).all()
    assert (found[1] > 0).any()


def _moments(passes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat = passes.double().flatten(1)
    flat = cat([flat, flat.sum(1, keepdim=True)], 1)
    count, mean, variance = len(flat), flat.mean(0), flat.var(0)
    spread = (flat - mean).pow(4).mean(0) - variance.square() * (count - 3) / (count - 1)
    return mean, variance, (variance / count).sqrt(), (spread.clamp_min(0) / count).sqrt()
