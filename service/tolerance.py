"""When a row's variance is known well enough, so that its passes may end; it does not know networks or noise.

A row ends at N = 64, 128, 256, … passes once every variance of it has a relative standard error below the tolerance.
Looks are few and far apart, for stopping at any pass at which the error happens to look small would favour small
variances: over 2 000 seeds and more at a tolerance of 0.05 the mean of the reported variances is within 2 % of the true
one for drop rates from 0.05 to 0.5, a saturated softmax included (`pytest -m slow tests/test_tolerance.py`).
What no pass has met by then, such as a jump that one pass in a thousand makes, is in no variance and no error.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

FIRST_LOOK = 64
FLOOR = 1e-12  # of the squared mean: below it a variance is float32's rounding, and no error of it says anything
Found = Mapping[str, Mapping[str, Tensor]]


def looks(most: int) -> Iterator[int]:
    """Yield the numbers of passes at which rows may end: 64, 128, 256, …, and at last the most."""
    look = FIRST_LOOK
    while look < most:
        yield look
        look *= 2
    yield most


def settled(mean: Tensor, variance: Tensor, error: Tensor, tolerance: float) -> Tensor:
    """Tell of each row [B] whether all its variances are known well enough; none is that is 0 or under the floor.

    Args:
        mean: The means [B, …].
        variance: The variances [B, …].
        error: The variances' relative standard errors [B, …]; not a number where a variance is 0.
        tolerance: The largest error that will do.
    """
    known = (variance > FLOOR * mean.square()) & (error <= tolerance)
    return known.reshape(len(known), -1).all(1)


def gather(parts: Sequence[tuple[Tensor, list[dict[str, Tensor]]]]) -> list[dict[str, Tensor]]:
    """Put rows that ended at different looks back in order: (rows' places, each output's quantities) each."""
    if len(parts) == 1:
        return parts[0][1]
    order = torch.cat([places for places, _ in parts]).argsort()
    outputs = zip(*(quantities for _, quantities in parts), strict=True)
    return [{name: torch.cat([part[name] for part in several])[order] for name in several[0]} for several in outputs]


def unsettled_rows(outputs: Found, tolerance: float, most: int = 10) -> tuple[str, ...]:
    """Return a note for each output with rows that ran the most passes and are still not known well enough."""
    notes = []
    for name, found in outputs.items():
        known = settled(found["mean"], found["variance"], found["variance_error"], tolerance)
        bad = (~known).nonzero().flatten().tolist()
        if bad:
            rows = ", ".join(map(str, bad[:most])) + (f" and {len(bad) - most} more" if len(bad) > most else "")
            notes.append(
                f"output {name!r}: rows {rows} ran the most passes, and a variance there is 0 or its error is above "
                f"the tolerance of {tolerance:g}; allow more passes, or see variance_error"
            )
    return tuple(notes)
