"""What runs in Ray's processes when a table is scored: reading blocks, answering them; it does not know who asked.

What travels is one item a block, and a fault that thinnet names travels as one: Ray would wrap it in its own.
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from service.cluster.parcel import Parcel, unpacked
from service.errors import ThinnetError
from service.scoring.block import Block
from service.scoring.engine import Answers, Parameters
from service.scoring.source import Source, open_source
from service.signature import Input

if TYPE_CHECKING:
    import pyarrow as pa

_ITEM = "item"


@dataclass(frozen=True)
class Answered(Block):
    """A block that comes back without its rows, and with answers.

    Attributes:
        answers: Quantities [B, …] by output and name.
        notes: What a reader of them must know.
    """

    answers: Answers | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Blocks to be read.

    Attributes:
        place: The table.
        inputs: What the model takes.
        block_rows: How many rows a block has.
        first_row: Where to begin.
        count: How many blocks; None reads to the end.
    """

    place: Path
    inputs: tuple[Input, ...]
    block_rows: int
    first_row: int
    count: int | None = None

    def __call__(self) -> "Iterator[pa.Table]":
        """Yield each block, or the fault that ends them."""
        try:
            blocks = _opened(self.place, self.inputs).blocks(self.block_rows, self.first_row)
            for block in islice(blocks, self.count):
                yield _table([_packed(block)])
        except ThinnetError as error:
            yield _table([pickle.dumps(error)])


class Scorer:
    """An actor that holds the model.

    Args:
        parcel: The model's files.
        device: Where its network runs.
        parameters: What every row is asked.
        kept: How it computes, as `LocalEngine` has it.
    """

    def __init__(self, parcel: Parcel, device: str, parameters: Parameters, kept: Mapping[str, Any]) -> None:
        from service.scoring.local import open_folder

        with TemporaryDirectory() as scratch:
            folder = unpacked(parcel, Path(scratch))
            self._engine = open_folder(folder, device)(parameters, kept)

    def __call__(self, items: "pa.Table") -> "pa.Table":
        """Answer some blocks."""
        return _table([self._answered(item) for item in items[_ITEM].to_pylist()])

    def _answered(self, item: bytes) -> bytes:
        block = _unpacked(item)
        if isinstance(block, ThinnetError):
            return item
        try:
            given = block.without_faults() if self._engine.described.couples_rows else block
            (answers,) = self._engine.answers(iter([given]))
        except ThinnetError as error:
            return pickle.dumps(error)
        return _packed(block, answers, tuple(self._engine.notes))


def items_of(table: "pa.Table") -> Iterator[Answered]:
    """Yield blocks with their answers.

    Raises:
        ThinnetError: What one came back as instead.
    """
    for item in table[_ITEM].to_pylist():
        found = _unpacked(item)
        if isinstance(found, ThinnetError):
            raise found
        yield found


@lru_cache(maxsize=1)
def _opened(place: Path, inputs: Sequence[Input]) -> Source:
    return open_source(place, inputs)


def _table(items: Sequence[bytes]) -> "pa.Table":
    import pyarrow as pa

    return pa.table({_ITEM: pa.array(items, pa.large_binary())})


def _packed(block: Block, answers: Answers | None = None, notes: tuple[str, ...] = ()) -> bytes:
    import pyarrow as pa

    keys = pa.record_batch([block.keys], [block.key]).serialize().to_pybytes()  # a slice alone, where pickle takes all
    rows = block.rows if answers is None else np.empty((len(block), 0))
    schema = pa.schema([pa.field(block.key, block.keys.type)]).serialize().to_pybytes()
    return pickle.dumps((schema, keys, rows, block.first_row, block.faults, answers, notes), pickle.HIGHEST_PROTOCOL)


def _unpacked(item: bytes) -> Answered | ThinnetError:
    import pyarrow as pa

    found = pickle.loads(item)
    if isinstance(found, ThinnetError):
        return found
    schema, keys, rows, first_row, faults, answers, notes = found
    batch = pa.ipc.read_record_batch(pa.py_buffer(keys), pa.ipc.read_schema(pa.py_buffer(schema)))
    return Answered(batch.schema.names[0], batch.column(0), rows, first_row, faults, answers, notes)
