"""How much longer work takes of late than was expected of it; it does not know what it is.

Costs are learned over many runs, and a machine becomes slow at once: when much is asked of it, above all.
"""

_HALF_S = 1.0  # of work, behind which what was before counts half
_USUAL_S = 0.5  # of work as it was expected, before anything has ended
_MOST = 4.0


class Pace:
    """What was expected and what it took, the latest counting most."""

    def __init__(self) -> None:
        self._expected_s = self._spent_s = _USUAL_S

    def learn(self, expected_s: float, spent_s: float) -> None:
        """Take what some work took."""
        kept = 0.5 ** (spent_s / _HALF_S)
        self._expected_s = self._expected_s * kept + expected_s
        self._spent_s = self._spent_s * kept + spent_s

    @property
    def times(self) -> float:
        """How many times as long as expected work takes: once at least, for what runs together takes less."""
        return min(max(1.0, self._spent_s / self._expected_s), _MOST)
