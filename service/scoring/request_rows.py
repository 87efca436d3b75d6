"""How many rows a request has, learned from how long requests take and what is refused; it does not know servers."""

FIRST_ROWS = 32
_SHORT_S, _LONG_S = 0.25, 1.0  # a server refuses what would wait for longer than a few seconds behind others


class RequestRows:
    """The rows of the next request: twice as many while requests are short, half while they are long.

    Attributes:
        rows: How many.
    """

    def __init__(self) -> None:
        self.rows, self._most = FIRST_ROWS, float("inf")

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a request that was answered; one of fewer rows than are sent now tells nothing of more."""
        if seconds > _LONG_S:
            self.rows = max(1, min(self.rows, rows // 2))
        elif seconds < _SHORT_S and rows >= self.rows:
            self.rows = int(min(2 * self.rows, self._most))

    def refused(self, rows: int) -> None:
        """Learn from a request that was too large: there is never one as large again."""
        self._most = min(self._most, max(1, rows // 2))
        self.rows = int(min(self.rows, self._most))
