"""The fast reader of CSV files says what the careful one says, whatever stands in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import InvalidInput
from service.scoring.block import Block
from service.scoring.csv_blocks import CsvSource
from service.scoring.csv_rows import read_blocks
from service.signature import Input

ODD = [
    '"x\ny",1,2', '"x"y,1,2', 'g,"1"2,3', "g,+1,2", "g,1e400,2", "g, 1 ,\t2", "g,0x10,2", "g,1,2,", "g,inf,2", "g,1,NA",
    "g,1.,.5", "g,1_0,5", "g,1d5,5", "g,١,5", ",1,2", '"a""b",1,2', "  sp ,1,2",
    "'q',1,2", "g,1,2\n\n\n", "g,1,2\n\ng,3,4",
    "g,-0,1e-50", "g,9007199254740993,1", "g,1.0,2", "g,9223372036854775808,1", 'g,"1","2"', "NaN,1,2", "true,1,2",
    "g,1 2,3", "g,00012,2", "g,nan(1),2", "g,1\x00,2", 'g,1,"2', "g,1", "", "g,,2",
    'g,""2,3', '"",1,2', '"he said, ""yes""",1,2', '","",x",1,2',
]  # fmt: skip


def told(blocks: Iterator[Block]) -> list[Any]:
    found: list[Any] = []
    try:
        for block in blocks:
            for at, key in enumerate(block.keys.to_pylist()):
                found.append((key, block.rows[at].tolist()))
            found += map(str, block.faults)
    except InvalidInput as error:
        found.append(str(error))
    return found


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_both_readers_agree(line: str, dtype: str, tmp_path: Path) -> None:
    spec = Input("x", dtype, (2,), ("a", "b"))
    (tmp_path / "in.csv").write_bytes(f"id,a,b\ng,5,6\n{line}\n".encode())

    assert told(CsvSource(tmp_path / "in.csv", spec).blocks(2)) == told(read_blocks(tmp_path / "in.csv", spec, 2))


@pytest.mark.parametrize("name", ["b", '"b"'], ids=["plain", "quoted"])
def test_a_file_without_a_fault_is_never_read_carefully(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.csv").write_text(f"{name},a\n" + "".join(f"{row}.5,{row}\n" for row in range(1000)))
    source = CsvSource(tmp_path / "in.csv", Input("x", "float32", (2,), ("a", "b")))
    monkeypatch.setattr("service.scoring.csv_blocks.read_blocks", lambda *at: iter([at]))
    found = [*source.blocks(300)]

    assert [len(block) for block in found] == [300, 300, 300, 100]
