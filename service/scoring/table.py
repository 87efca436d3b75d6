"""A CSV file of rows into a CSV file of answers, block by block; it does not know who answers.

The answer to a row does not depend on where blocks end: in pass scope noise knows no rows, and in row scope a block
tells the index of its first row.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, RemoteFault
from service.scoring.columns import Answers, cells, column_names
from service.scoring.csv_rows import Block, read_blocks
from service.scoring.whole_file import check_target, write_whole
from service.signature import Input, Output

BLOCK_ROWS = 256
ScoreBlock = Callable[[NDArray[Any], int], Mapping[str, Mapping[str, NDArray[Any]]]]


@dataclass(frozen=True)
class Summary:
    """What was scored.

    Attributes:
        rows: How many rows.
        seconds: How long it took.
    """

    rows: int
    seconds: float


def score_table(
    source: Path,
    target: Path,
    score_block: ScoreBlock,
    inputs: Sequence[Input],
    outputs: Sequence[Output] = (),
    block_rows: int = BLOCK_ROWS,
) -> Summary:
    """Score every row of a CSV file; the result appears whole or not at all, in the same order.

    The first column is the file's `id` column or, where it has none, `row`, counted from 0. Then come the answer's
    quantities: `mean`, or one column for each element, by label or number; `<output>.` stands before it where there are
    several outputs.

    Args:
        source: A UTF-8 CSV file with a header: the input's feature names in any order, or as many columns as it has
            features where they have no names; and `id`, if there is one.
        target: Where the result goes; a file there is replaced.
        score_block: Takes rows [B, features] and the index of the first; returns quantities [B, …] by output and name.
        inputs: What the model takes.
        outputs: What its outputs mean, for their labels.
        block_rows: How many rows go together.

    Raises:
        InvalidInput: With line and column, or what is wrong with the files.
    """
    started = time.perf_counter()
    spec = _single_input(inputs)
    check_target(source, target)
    labels = {output.name: output.labels for output in outputs}
    rows, header = 0, None
    with write_whole(target) as writer:
        for block in read_blocks(source, spec, block_rows):
            answers = _answers(source, block, score_block)
            names = [block.key, *column_names(answers, labels)]
            if header is None:
                header = names
                writer.writerow(header)
            if names != header:
                raise RemoteFault(
                    f"{_rows(source, block)}: the answer has other columns than before: {_differing(header, names)}"
                )
            writer.writerows([key, *row] for key, row in zip(block.keys, cells(answers, labels), strict=True))
            rows += len(block.keys)
    return Summary(rows, time.perf_counter() - started)


def _single_input(inputs: Sequence[Input]) -> Input:
    if len(inputs) != 1 or len(inputs[0].shape) != 1:
        found = "; ".join(f"{one.name} [rows, {', '.join(map(str, one.shape))}]" for one in inputs)
        raise InvalidInput(
            f"a table has rows and features, and the model takes {found}; use Predictor.predict or POST /predict"
        )
    return inputs[0]


def _answers(source: Path, block: Block, score_block: ScoreBlock) -> Answers:
    try:
        answers = score_block(block.rows, block.first_row)
    except (InvalidInput, RemoteFault) as error:
        raise type(error)(f"{_rows(source, block)}: {error}") from error
    for quantities in answers.values():
        for name, values in quantities.items():
            if np.ndim(values) == 0 or len(values) != len(block.keys):
                raise RemoteFault(
                    f"{_rows(source, block)}: {name} has the shape {np.shape(values)}, not a value for each row"
                )
    return answers


def _rows(source: Path, block: Block) -> str:
    return f"{source}, rows {block.first_row} to {block.first_row + len(block.keys) - 1}"


def _differing(header: Sequence[str], names: Sequence[str]) -> str:
    return ", ".join(sorted(set(header) ^ set(names))[:10]) or "another order"
