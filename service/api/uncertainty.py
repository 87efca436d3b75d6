"""The uncertainty of what was answered, a few values of each answer, looked at together; it does not know histograms.

To look at each answer by itself takes longer than much else about a small request.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import count
from math import sqrt
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from service.prediction import Prediction

_SAMPLED = 4  # values of a quantity that one prediction adds: a histogram needs no more, and each costs a microsecond
_MOST_WAITING = 1024
_ENTROPIES, _MOMENTS = ("entropy", "mutual_information"), ("mean", "variance")


class Uncertainty:
    """What waits to be looked at; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, str, tuple[str, ...], list[Tensor]]] = deque()
        self._turn, self._lock = count(), Lock()

    def note(self, model: str, prediction: "Prediction") -> bool:
        """Keep a few values of a model's prediction, and tell whether as many wait as are kept."""
        turn = next(self._turn)
        for output, found in prediction.outputs.items():
            names = _ENTROPIES if "entropy" in found else _MOMENTS
            self._waiting.append((model, output, names, [_few(found[name], turn) for name in names]))
        return len(self._waiting) >= _MOST_WAITING

    def taken(self) -> Iterator[tuple[str, list[float], str, str]]:
        """Take what waits: the name of each quantity, its values, model and output."""
        together: dict[tuple[str, str, tuple[str, ...]], list[list[Tensor]]] = defaultdict(list)
        with self._lock:  # two who take at once would find nothing left
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for model, output, names, values in waiting:
            together[model, output, names].append(values)
        for (model, output, names), several in together.items():
            columns = [[value for each in column for value in each.tolist()] for column in zip(*several, strict=True)]
            if names == _ENTROPIES:
                yield from ((name, column, model, output) for name, column in zip(names, columns, strict=True))
            else:
                pairs = zip(*columns, strict=True)
                ratios = [sqrt(variance) / abs(mean) for mean, variance in pairs if mean and variance >= 0]
                yield "relative_deviation", ratios, model, output


def _few(values: "Tensor", turn: int) -> "Tensor":
    """Return a few values, evenly apart, others at each turn so that every column has its share."""
    flat = values.flatten()
    step = -(-flat.shape[0] // _SAMPLED)
    return flat[turn % step :: step].clone() if step > 1 else flat  # a copy, so that no large answer is kept for it
