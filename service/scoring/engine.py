"""What answers rows, as far as a table knows it: what it is asked, what it says of itself, answers in order.

It does not know who answers: a predictor of this process (`local`), a server, a cluster.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from service.errors import BadRequest
from service.scoring.block import Block
from service.signature import Input, Output

Answers = Mapping[str, Mapping[str, NDArray[Any]]]
"""Quantities [B, …] by output and name."""
Seed = int | None | Literal["default"]


@dataclass(frozen=True)
class Parameters:
    """What every row is asked, as `Predictor.predict` takes it, and the version of the model.

    Attributes:
        passes: N; None takes the model's own.
        variant: The whole plan's variant.
        p: The whole plan's drop rate.
        sites: Overrides by site.
        seed: The noise's seed, one for the whole table; an engine never sees None, which asks for a fresh one.
        scope: `pass` or `row`.
        estimator: `sampled` or `integrated`.
        tolerance: The relative error of a row's variances at which its passes end.
        precision: What products run in.
        quantities: What to compute besides the task's defaults.
        version: The model's version; None takes the highest.
    """

    passes: int | None = None
    variant: str | None = None
    p: float | None = None
    sites: Mapping[str, Any] | None = None
    seed: Seed = "default"
    scope: str = "pass"
    estimator: str = "sampled"
    tolerance: float | None = None
    precision: str = "float32"
    quantities: Sequence[str] | None = None
    version: int | str | None = None

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> "Parameters":
        """Return what is asked by name.

        Raises:
            BadRequest: A name is unknown.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise BadRequest(f"{unknown[0]!r} cannot be asked for; there are {', '.join(known)}")
        return cls(**asked)

    def asked(self) -> dict[str, Any]:
        """Return the keyword arguments of `Predictor.predict`."""
        found = {name: value for name, value in asdict(self).items() if name != "version"}
        return found | {"quantities": None if self.quantities is None else list(self.quantities)}


@dataclass(frozen=True)
class Described:
    """What an engine says of the model that it asks.

    Attributes:
        model: The model's name.
        version: The version that answers, and that a run which goes on is pinned to.
        fingerprint: Changes where the answers would: of the network, its weights and what its tensors mean.
        inputs: What it takes.
        outputs: What it gives.
        couples_rows: Whether a row's answer depends on the others, so that all rows must go in one block.
        seed: The seed that it answers with, where it says so.
        passes: The passes that it runs at most, where it says so.
    """

    model: str
    version: int | str | None
    fingerprint: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    couples_rows: bool = False
    seed: int | None = None
    passes: int | None = None


class Engine(Protocol):
    """What answers rows.

    Attributes:
        name: What it is called in the manifest; a run goes on with the engine that it began with.
        described: The model.
        block_rows: How many rows a block shall have.
        kept: What it must find again to answer alike when a run goes on, as JSON has it.
        notes: What a reader of the answers must know, once something was answered.
    """

    name: str
    described: Described
    block_rows: int
    kept: Mapping[str, Any]
    notes: Sequence[str]

    def answers(self, blocks: Iterator[Block]) -> Iterator[Answers]:
        """Yield each block's answers, in the blocks' order; several blocks may be taken before the first answer.

        A block's row i has the index `block.first_row + i`, which row scope draws by. Closing the iterator ends it.

        Raises:
            InvalidInput, RemoteFault: With what is wrong; the table says which rows.
        """


OpenEngine = Callable[[Parameters, Mapping[str, Any]], Engine]
"""Makes an engine for parameters whose seed and version are settled, with what one before it `kept` or nothing."""
