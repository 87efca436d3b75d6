"""A client scores files as the command does: the same bytes for the same server."""

import asyncio
import csv
from pathlib import Path

import pytest

from service.client import AsyncClient, Client
from service.errors import BadRequest, InvalidInput
from service.scoring.remote import score_remotely


@pytest.fixture
def table(tmp_path: Path) -> Path:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["x", "y", "z"], *([row / 7, 2.0, -row] for row in range(90))])
    return tmp_path / "rows.csv"


def test_both_clients_score_a_file(client: Client, address: str, table: Path, tmp_path: Path) -> None:
    async def score() -> int:
        async with AsyncClient(address) as there:
            return (await there.score(table, tmp_path / "awaited.csv", model="line", passes=5, version=1)).rows

    score_remotely(address, table, tmp_path / "wanted.csv", model="line", passes=5, version=1)
    assert client.score(str(table), tmp_path / "waited.csv", model="line", passes=5, version=1).rows == 90
    assert asyncio.run(score()) == 90
    wanted = (tmp_path / "wanted.csv").read_text()
    assert wanted == (tmp_path / "waited.csv").read_text() == (tmp_path / "awaited.csv").read_text()


def test_a_bad_row_may_be_skipped_or_ends_it(client: Client, table: Path, tmp_path: Path) -> None:
    table.write_text(table.read_text() + "1,2,\n")
    with pytest.raises(InvalidInput, match=r"row 90.*column 'z' is empty"):
        client.score(table, tmp_path / "out.csv", model="line", passes=5)
    with pytest.raises(BadRequest, match=r"'pases' cannot be asked for; there are passes, variant"):
        client.score(table, tmp_path / "out.csv", model="line", pases=5)
    summary = client.score(table, tmp_path / "out.csv", model="line", passes=5, on_error="skip")
    assert (summary.rows, summary.left_out) == (90, 1)
