"""One file of rows, read whole for a single prediction: JSON, CSV or NumPy; it does not know what answers."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import InvalidInput
from service.scoring.csv_rows import read_blocks, read_header
from service.signature import Input
from service.wire import arrays_from_json, parse_json

SUFFIXES = (".json", ".csv", ".npy")


def read_rows_file(path: Path, inputs: tuple[Input, ...]) -> dict[str, Any]:
    """Return an array for each input, by name.

    Args:
        path: `.json`: rows, an object of them by input name, or a whole body of `POST /predict`, whose other fields are
            not read; `.csv`: a header and rows of the only input's features; `.npy`: the only input as an array.
        inputs: What the model takes.

    Raises:
        InvalidInput: With the file, and what is wrong in it.
    """
    try:
        if path.suffix == ".json":
            return _from_json(path, inputs)
        if path.suffix == ".csv":
            read_header(path, _only(path, inputs))
            (block,) = read_blocks(path, inputs[0], sys.maxsize)
            if block.faults:
                raise InvalidInput(str(block.faults[0]))
            return {inputs[0].name: block.rows}
        if path.suffix == ".npy":
            return {_only(path, inputs).name: np.load(path, allow_pickle=False)}
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    raise InvalidInput(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them")


def _from_json(path: Path, inputs: tuple[Input, ...]) -> dict[str, Any]:
    value = parse_json(path.read_bytes())
    names = [spec.name for spec in inputs]
    if isinstance(value, dict) and "inputs" in value and "inputs" not in names:
        value = value["inputs"]
    return dict(arrays_from_json(value, names))


def _only(path: Path, inputs: tuple[Input, ...]) -> Input:
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise InvalidInput(f"{path} holds one input, the model takes {len(inputs)} ({names}); give a .json file")
    return inputs[0]
