"""An engine of a plain function, and a program that scores with it, slowly, so that it can be stopped."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.scoring import answering
from service.scoring.block import Block
from service.scoring.engine import Answers, Described, OpenEngine, Parameters
from service.scoring.table import score_table
from service.signature import Input, Output

Answer = Callable[[NDArray[Any], int], Answers]


def doubled(rows: NDArray[Any], first_row: int) -> Answers:
    """Answer each row's first number as the mean and its index as the variance."""
    first = rows.reshape(len(rows), -1)[:, 0]
    return {"output": {"mean": first * 2, "variance": np.arange(first_row, first_row + len(rows)) * 1.0}}


@dataclass(frozen=True)
class Plain:
    """An engine of a function."""

    described: Described
    answer: Answer = doubled
    block_rows: int = 256
    name: str = "plain"
    kept: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def answers(self, blocks: Iterator[Block]) -> Iterator[Answers]:
        for block in blocks:
            yield self.answer(block.rows, block.first_row)


def engine(
    *inputs: Input,
    answer: Answer = doubled,
    outputs: tuple[Output, ...] = (),
    block_rows: int = 256,
    version: int = 1,
    fingerprint: str = "same",
    couples_rows: bool = False,
) -> OpenEngine:
    """Return what opens an engine; it has the version that it is asked for."""

    def open_engine(parameters: Parameters, kept: Mapping[str, Any]) -> Plain:
        own = parameters.version or version
        return Plain(Described("plain", own, fingerprint, inputs, outputs, couples_rows), answer, block_rows)

    return open_engine


def slowly(rows: NDArray[Any], first_row: int) -> Answers:
    time.sleep(0.004)
    return doubled(rows, first_row)


if __name__ == "__main__":
    answering.PART_ROWS = 32
    table = Input("x", shape=(2,), features=("a", "b"))
    score_table(Path(sys.argv[1]), Path(sys.argv[2]), engine(table, answer=slowly, block_rows=8))
