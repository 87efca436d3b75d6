"""Whether two answers say the same, to float rounding; it does not know who gave them.

float32 keeps 24 bits. The same row among others goes through products of another shape, whose sums have another order:
a few units of the last place each, some 1e-6 of the value through a network. A variance is what is left of passes after
their mean is taken off, so the rounding of the passes (1e-6 of their size) stands against a spread that is a hundredth
of it in the tests' models: 1e-4 of a variance. `ABSOLUTE` is for quantities that are 0 but for rounding, such as the
entropy of a sure class; it is of the largest value where that is above 1, for a sample that happens to be near 0 among
samples of 100 carries their rounding. A row mixed up with a neighbour's, or with another seed, differs in the first
digits.
"""

from typing import Any

import numpy as np

RELATIVE, ABSOLUTE = 1e-4, 1e-6


def difference(mine: Any, alone: Any, place: str = "") -> str | None:
    """Return the first place where two answers differ, or None."""
    if isinstance(mine, dict) and isinstance(alone, dict):
        if set(mine) != set(alone):
            return f"{place or 'answer'} has {sorted(mine)}, alone {sorted(alone)}"
        found = (difference(mine[key], alone[key], f"{place}/{key}") for key in mine)
        return next((each for each in found if each), None)
    if isinstance(mine, list) and isinstance(alone, list) and _is_of_reals(mine, alone):
        try:
            first, second = np.asarray(mine, dtype=float), np.asarray(alone, dtype=float)
        except ValueError:
            return next((told for pair in zip(mine, alone, strict=False) if (told := difference(*pair, place))), None)
        size = np.max(np.abs(second), initial=1.0, where=np.isfinite(second))
        if first.shape == second.shape and np.allclose(first, second, RELATIVE, ABSOLUTE * size, equal_nan=True):
            return None
        return f"{place} is {_shown(mine)}, alone {_shown(alone)}"
    if isinstance(mine, float) and isinstance(alone, float):
        return None if np.isclose(mine, alone, RELATIVE, ABSOLUTE) else f"{place} is {mine}, alone {alone}"
    return None if mine == alone else f"{place} is {_shown(mine)}, alone {_shown(alone)}"


def _is_of_reals(*lists: list[Any]) -> bool:
    return any(_has(each, (float, type(None))) for each in lists)


def _has(value: Any, kinds: tuple[type, ...]) -> bool:
    return any(_has(each, kinds) for each in value) if isinstance(value, list) else isinstance(value, kinds)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]}…"
