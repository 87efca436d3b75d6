"""What a dtype holds, and why a value is none of it; it does not know where values come from."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.datasheet import FLOATING

_BFLOAT16_MAX = 3.3895313892515355e38
_SHOWN = 40


@dataclass(frozen=True)
class Limits:
    """What a dtype holds.

    Attributes:
        dtype: Its name, as a model's input has it.
        low: The least number.
        high: The greatest number.
    """

    dtype: str
    low: float
    high: float

    @classmethod
    def of(cls, dtype: str) -> "Limits":
        """Return what a dtype holds."""
        if dtype == "bool":
            return cls(dtype, 0, 1)
        if dtype == "bfloat16":
            return cls(dtype, -_BFLOAT16_MAX, _BFLOAT16_MAX)
        limits = np.finfo(dtype) if dtype in FLOATING else np.iinfo(dtype)
        kind = float if dtype in FLOATING else int
        return cls(dtype, kind(limits.min), kind(limits.max))

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return self.dtype not in FLOATING

    @property
    def array(self) -> np.dtype[Any]:
        """What NumPy holds such numbers in."""
        return np.dtype("float32" if self.dtype == "bfloat16" else self.dtype)

    def read(self, cell: str) -> float:
        """Return the number that a text is.

        Raises:
            ValueError: It is none, or not one that the dtype holds; with what it is and the cure.
        """
        text = cell.strip()
        if not text:
            raise ValueError("is empty; fill it in, or leave the row out")
        try:
            number = _exact(text) if self.is_whole else float(text)
        except ValueError:
            raise ValueError(f"is {cell[:_SHOWN]!r}, not a number; give a finite number with a point") from None
        if "_" in text or not math.isfinite(number):
            raise ValueError(f"is {cell[:_SHOWN]!r}; give a finite number, digits and a point only")
        return self.checked(number, repr(cell[:_SHOWN]))

    def checked(self, number: float, shown: str) -> float:
        """Return a number that the dtype holds.

        Raises:
            ValueError: It does not hold it; with what it is, as it is shown, and the cure.
        """
        if not math.isfinite(number):
            raise ValueError(f"is {shown}; give a finite number")
        if self.is_whole and number != int(number):
            raise ValueError(f"is {shown}; the model takes whole numbers ({self.dtype})")
        if not self.low <= number <= self.high:
            raise ValueError(f"is {shown}, outside of {self.dtype}; give {self.low:g} to {self.high:g}")
        return int(number) if self.is_whole else number

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell of each number whether the dtype holds it."""
        with np.errstate(invalid="ignore"):
            found: NDArray[np.bool_] = (values >= self.low) & (values <= self.high)
            return found & (values == np.trunc(values)) if self.is_whole and values.dtype.kind == "f" else found


def _exact(text: str) -> float:
    """Return a number, exactly where it is whole; far outside of any dtype, infinity."""
    try:
        number = int(text)
    except ValueError:
        return float(text)
    return number if abs(number) < 1 << 64 else math.inf
