"""One table in every format, and the way to score it with a plain engine."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from plain_engine import engine
from pyarrow import csv, feather

from service.scoring import Summary, score_table
from service.signature import Input

TABLE = Input("x", shape=(2,), features=("age", "size"))
ROWS = 700


def table(**changed: Any) -> pa.Table:
    """Seven hundred rows, their columns in an order of their own."""
    rows = np.arange(ROWS)
    columns = {"size": rows + 0.25, "id": pa.array([f"r{row}" for row in rows]), "age": rows / 8}
    return pa.table(columns | changed)


def write_json_lines(content: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content.to_pylist()))


def write_gzipped(content: pa.Table, path: Path) -> None:
    with gzip.open(path, "wb") as file:
        csv.write_csv(content, file)


def write_stream(content: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content, 100)


def write_folder(content: pa.Table, path: Path) -> None:
    path.mkdir()
    (path / "_SUCCESS").touch()
    for index in range(3):
        pq.write_table(content.slice(300 * index, 300), path / f"part-{index}.parquet", row_group_size=70)


WRITERS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "in.csv": csv.write_csv,
    "in.csv.gz": write_gzipped,
    "in.parquet": pq.write_table,
    "folder": write_folder,
    "in.jsonl": write_json_lines,
    "in.arrow": lambda content, path: feather.write_feather(content, str(path)),
    "in.ipc": write_stream,
}


def score(source: Path, name: str = "out.csv", spec: Input = TABLE, **more: Any) -> Summary:
    given = {key: more.pop(key) for key in ("answer", "outputs", "block_rows") if key in more}
    return score_table(source, source.parent / name, engine(spec, **given), **more)
