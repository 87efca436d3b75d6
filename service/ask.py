"""How passes are asked for: how many, from which seed, shared by all rows or not; it does not know inputs or plans."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.datasheet import MAX_PASSES, MIN_PASSES
from service.errors import BadRequest, InvalidQuantity
from service.graph.precision import FLOAT32, PRECISIONS
from service.plan import Override
from service.quantities import REACHED, check, needs_samples
from service.signature import Output

SCOPES = ("pass", "row")
SAMPLED, INTEGRATED = ESTIMATORS = ("sampled", "integrated")
MEMORY_BYTES = 1 << 30  # what one request may hold at once
_MAX_SEED = (1 << 64) - 1
_MAX_OFFSET = (1 << 62) - 1
Seed = int | None | Literal["default"]


@dataclass(frozen=True)
class Ask:
    """Passes, as they were asked for.

    Attributes:
        passes: N.
        seed: The noise's seed.
        scope: `pass`: one pass is one network for all rows; `row`: every row has networks of its own.
        row_offset: Index of the first row in a larger table, for row scope.
        tolerance: The relative standard error of a row's variances at which its passes end; None runs all N.
        estimator: `sampled`: passes sample every site; `integrated`: the last one is integrated exactly.
        precision: What products run in, `float32`, `bfloat16` or `tf32`.

    Raises:
        BadRequest: One of them is out of range.
    """

    passes: int
    seed: int
    scope: str = "pass"
    row_offset: int = 0
    estimator: str = SAMPLED
    tolerance: float | None = None
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        if not _is_whole(self.passes, MIN_PASSES, MAX_PASSES):
            raise BadRequest(f"passes = {self.passes!r} is not a whole number from {MIN_PASSES} to {MAX_PASSES}")
        if not _is_whole(self.seed, 0, _MAX_SEED):
            raise BadRequest(f"seed = {self.seed!r} is not a whole number from 0 to 2**64 - 1, or null for a fresh one")
        if self.scope not in SCOPES:
            raise BadRequest(f"scope = {self.scope!r} is neither 'pass' nor 'row'")
        if not _is_whole(self.row_offset, 0, _MAX_OFFSET):
            raise BadRequest(f"row_offset = {self.row_offset!r} is not a whole number from 0 to 2**62 - 1")
        if self.estimator not in ESTIMATORS:
            raise BadRequest(f"estimator = {self.estimator!r} is neither 'sampled' nor 'integrated'")
        if self.tolerance is not None and not _is_share(self.tolerance):
            raise BadRequest(f"tolerance = {self.tolerance!r} is not a number between 0 and 1, such as 0.05")
        if self.precision not in PRECISIONS:
            raise BadRequest(
                f"precision = {self.precision!r} is not served; the precisions are {', '.join(PRECISIONS)}"
            )
        if self.integrates and self.precision != FLOAT32:
            raise BadRequest(
                f"estimator 'integrated' is exact and runs in {FLOAT32}; leave precision out, or use 'sampled'"
            )

    @property
    def per_row(self) -> bool:
        """Whether every row has networks of its own."""
        return self.scope == "row"

    @property
    def integrates(self) -> bool:
        """Whether each output's last site is integrated."""
        return self.estimator == INTEGRATED

    def rows(self, first: int, count: int) -> Sequence[int] | None:
        """Return the indices that the noise of some neighbouring rows depends on; None where it depends on none."""
        start = self.row_offset + first
        return range(start, start + count) if self.per_row else None


class Asked(NamedTuple):
    """What a caller said, whole; None takes the model's own. `Predictor.predict` tells what each means."""

    passes: int | None = None
    variant: str | None = None
    p: float | None = None
    sites: Mapping[str, Override] | None = None
    seed: Seed = "default"
    scope: str = "pass"
    row_offset: int = 0
    estimator: str = SAMPLED
    tolerance: float | None = None
    quantities: Sequence[str] | None = None
    precision: str = FLOAT32
    memory_bytes: int = MEMORY_BYTES

    def of_passes(self, passes: int, default_seed: int) -> Ask:
        """Return how its passes are asked for.

        Raises:
            BadRequest: It is out of range.
        """
        seed = choose_seed(self.seed, default_seed)
        return Ask(passes, seed, self.scope, self.row_offset, self.estimator, self.tolerance, self.precision)


def choose_seed(seed: Seed, default: int) -> int:
    """Return the seed asked for: the default one, or a fresh one for None."""
    if seed is None:
        return secrets.randbits(53)  # exact in any JSON reader
    return default if seed == "default" else seed


def quantities_of(
    outputs: Sequence[Output], asked: Sequence[str] | None, tolerance: float | None = None
) -> list[tuple[str, ...]]:
    """Return what to compute for each output: `name` for all, `output.name` for one of several.

    With a tolerance, what it reached comes unasked.

    Raises:
        InvalidQuantity: A name is unknown, or not this output's, or rows would need equally many passes for it.
    """
    reached = REACHED if tolerance is not None else ()
    wanted = [check(output, [*reached, *_own(output, asked or (), outputs)]) for output in outputs]
    if tolerance is not None and any(needs_samples(names) for names in wanted):
        raise InvalidQuantity(
            "samples and quantiles are of equally many passes for all rows, which a tolerance does not give; leave out "
            "one or the other"
        )
    return wanted


def _own(output: Output, asked: Sequence[str], outputs: Sequence[Output]) -> list[str]:
    names = {each.name for each in outputs}
    own = []
    for quantity in asked:
        owner = _owner(quantity, names) if len(outputs) > 1 else None
        if owner is None:
            own.append(quantity)
        elif owner == output.name:
            own.append(quantity.removeprefix(f"{owner}."))
    return own


def _owner(quantity: str, names: set[str]) -> str | None:
    return next((name for name in names if quantity.startswith(f"{name}.")), None)


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 < value < 1


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
