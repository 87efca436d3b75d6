"""Compare a prediction's moments with draws made by hand."""

from torch import Tensor

SIGMAS = 5


def assert_same_moments(mean: Tensor, variance: Tensor, theirs: Tensor) -> None:
    """Compare with as many draws [N, …] as passes, within 5 standard errors of both samples; none may be constant."""
    count, centred = len(theirs), theirs.double() - theirs.double().mean(0)
    expected, fourth = centred.square().mean(0), centred.pow(4).mean(0)
    spread = (2 * (fourth - expected.square()).clamp_min(0) / count).sqrt() + 8 * expected / count

    assert (variance > 0).all(), f"a variance is 0: {variance.tolist()}"
    off = ((mean - theirs.mean(0)).abs() / (2 * expected / count).sqrt()).max()
    assert off < SIGMAS, f"a mean is {off:.1f} standard errors off"
    off = ((variance - expected).abs() / spread).max()
    assert off < SIGMAS, f"a variance is {off:.1f} standard errors off"
