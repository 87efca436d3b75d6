"""What is counted in a while, added to Prometheus' own counts at once; it does not know what is counted.

To add one value to counts that processes share takes longer than much else about a small request.
"""

from bisect import bisect_left
from collections import Counter as Count
from collections import defaultdict, deque
from collections.abc import Sequence
from threading import Lock

from prometheus_client import Counter, Histogram

_MOST_WAITING = 4096


class Many(Histogram):
    """A histogram that takes many values at once."""

    def take(self, values: Sequence[float]) -> None:
        """Add values, as `observe` would one by one."""
        self._sum.inc(sum(values))
        for place, count in Count(bisect_left(self._upper_bounds, value) for value in values).items():
            self._buckets[place].inc(count)


class Tallies:
    """What waits to be added; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Counter | Many, float]] = deque()
        self._lock = Lock()

    def note(self, figure: Counter | Many, value: float) -> None:
        """Keep a value for later; where many wait, add them now."""
        self._waiting.append((figure, value))
        if len(self._waiting) >= _MOST_WAITING:
            self.add()

    def add(self) -> None:
        """Add what waits."""
        with self._lock:
            together: dict[Counter | Many, list[float]] = defaultdict(list)
            for _ in range(len(self._waiting)):
                figure, value = self._waiting.popleft()
                together[figure].append(value)
            for figure, values in together.items():
                if isinstance(figure, Counter):
                    figure.inc(sum(values))
                else:
                    figure.take(values)
