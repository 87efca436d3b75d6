"""A run that was stopped goes on where it stopped and gives what an undisturbed one gives; another run is refused."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plain_engine import doubled, engine

from service.errors import InvalidInput, NotWritten, RemoteFault, RunChanged
from service.scoring import Parameters, Summary, answering, score_table
from service.scoring.engine import Answers
from service.scoring.work_folder import place_of
from service.signature import Input

TABLE = Input("x", shape=(2,), features=("a", "b"))
PLAIN = Parameters()
PROGRAM = Path(__file__).with_name("plain_engine.py")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Ten blocks of ten rows."""
    path = tmp_path / "in.csv"
    path.write_text("id,a,b\n" + "".join(f"r{row},{row}.5,1\n" for row in range(100)))
    return path


@pytest.fixture(autouse=True)
def parts_of_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "PART_ROWS", 20)


def score(rows: Path, parameters: Parameters = PLAIN, *, restart: bool = False, **more: Any) -> Summary:
    opened = engine(TABLE, block_rows=10, **more)
    return score_table(rows, rows.parent / "out.csv", opened, parameters, restart=restart)


class Stopping:
    """Answers until it has had so many blocks, and counts them."""

    def __init__(self, blocks: int, error: BaseException | None = None) -> None:
        self.left, self.asked = blocks, 0
        self.error = error or RemoteFault("the server is gone")

    def __call__(self, rows: NDArray[Any], first_row: int) -> Answers:
        if self.asked == self.left:
            raise self.error
        self.asked += 1
        return doubled(rows, first_row)


def stop(rows: Path, blocks: int, **more: Any) -> None:
    with pytest.raises(RemoteFault, match="the server is gone"):
        score(rows, answer=Stopping(blocks), **more)


def undisturbed(rows: Path) -> bytes:
    score_table(rows, rows.parent / "whole.csv", engine(TABLE, block_rows=10))
    return (rows.parent / "whole.csv").read_bytes()


def test_what_is_done_is_not_asked_again_and_the_result_is_that_of_one_run(rows: Path) -> None:
    stop(rows, blocks=7)
    assert not (rows.parent / "out.csv").exists()
    answer = Stopping(10)
    summary = score(rows, answer=answer)

    assert (summary.rows, summary.found_done, answer.asked) == (100, 60, 4)
    assert (rows.parent / "out.csv").read_bytes() == undisturbed(rows)
    assert not place_of(rows.parent / "out.csv").exists()


def test_a_run_that_did_nothing_leaves_nothing(rows: Path) -> None:
    stop(rows, blocks=1)

    assert [path.name for path in rows.parent.iterdir()] == ["in.csv"]


def test_ctrl_c_keeps_what_is_done(rows: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(rows, answer=Stopping(5, KeyboardInterrupt()))

    assert score(rows).found_done == 40


def test_starting_anew_throws_away_what_is_done(rows: Path) -> None:
    stop(rows, blocks=7)

    assert score(rows, restart=True).found_done == 0


def test_the_seed_that_was_drawn_and_the_version_that_was_there_are_kept(rows: Path) -> None:
    stop(rows, blocks=7, version=1)
    begun = json.loads((place_of(rows.parent / "out.csv") / "manifest.json").read_bytes())
    assert begun["settled"]["version"] == 1

    assert score(rows, version=2).run["version"] == 1

    fresh = Parameters(seed=None)
    with pytest.raises(RemoteFault, match="gone"):
        score(rows, fresh, answer=Stopping(7))
    drawn = json.loads((place_of(rows.parent / "out.csv") / "manifest.json").read_bytes())["settled"]["seed"]
    assert score(rows, fresh).run["seed"] == drawn


@pytest.mark.parametrize(
    ("parameters", "more", "what"),
    [
        (Parameters(passes=7), {}, "passes was left out and is 7; put back what there was, or start anew with --rest"),
        (Parameters(seed=3), {}, "seed was 'default' and is 3"),
        (Parameters(version=1), {}, "version was left out and is 1"),
        (Parameters(), {"fingerprint": "other"}, "version 1 of the model 'plain' is another network now"),
    ],
)
def test_another_run_is_refused_with_what_changed(rows: Path, parameters: Any, more: Any, what: str) -> None:
    stop(rows, blocks=7)
    with pytest.raises(RunChanged, match=what):
        score(rows, parameters, **more)
    score(rows)


def test_other_rows_are_refused(rows: Path) -> None:
    stop(rows, blocks=7)
    rows.write_text(rows.read_text().replace("99.5", "99.6"))

    with pytest.raises(RunChanged, match=r"the rows of in.csv are not those that it began with"):
        score(rows)


def test_two_runs_do_not_write_one_result(rows: Path) -> None:
    place = place_of(rows.parent / "out.csv")
    place.mkdir()
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotWritten, match=r"another run is writing .*out.csv; wait for it, or name another file"):
            score(rows)


def test_what_a_run_left_that_died_while_tidying_up_is_not_taken_for_another(rows: Path) -> None:
    stop(rows, blocks=7)
    place = place_of(rows.parent / "out.csv")
    (place / "manifest.json").unlink()

    assert score(rows).found_done == 0
    assert (rows.parent / "out.csv").read_bytes() == undisturbed(rows)


def test_a_part_that_does_not_follow_is_done_again(rows: Path) -> None:
    stop(rows, blocks=7)
    place = place_of(rows.parent / "out.csv")
    (place / "000001.arrow").unlink()

    assert score(rows).found_done == 20
    assert (rows.parent / "out.csv").read_bytes() == undisturbed(rows)


def test_a_damaged_part_is_told_with_its_cure(rows: Path) -> None:
    stop(rows, blocks=7)
    (place_of(rows.parent / "out.csv") / "000001.arrow").write_bytes(b"nothing")

    with pytest.raises(InvalidInput, match=r"000001.arrow cannot be read .*; give --restart"):
        score(rows)


def test_a_full_disk_is_one_line_and_what_is_done_stays(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    def answer(numbers: NDArray[Any], first_row: int) -> Answers:
        if first_row >= 50:
            monkeypatch.setattr(os, "fsync", full)
        return doubled(numbers, first_row)

    with pytest.raises(NotWritten, match=r"cannot be written: No space left on device; once it can be, the same comm"):
        score(rows, answer=answer)
    monkeypatch.undo()
    assert score(rows).found_done == 40


def test_no_permission_is_told(rows: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    rows.parent.chmod(0o500)
    with pytest.raises(NotWritten, match="cannot be written: Permission denied; name a file in another directory"):
        score(rows)


def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,a,b\n" + "".join(f"r{row},{row}.5,1\n" for row in range(2000)))
    chance, kills = random.Random(5), 0
    command = [sys.executable, str(PROGRAM), str(source), str(tmp_path / "out.csv")]
    while True:
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])})
        if kills == 3:
            assert process.wait(60) == 0
            break
        wait_for(place_of(tmp_path / "out.csv") / f"{20 * kills + chance.randrange(5, 15):06}.arrow", process)
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (tmp_path / "out.csv").exists()

    lines = (tmp_path / "out.csv").read_text().splitlines()
    expected = [f"r{row},{np.float32(2 * row + 1):g},{row}" for row in range(2000)]
    assert lines == ["id,mean,variance", *expected]


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < until, f"{path} does not appear"
        time.sleep(0.002)


def test_wide_answers_make_parts_of_fewer_rows(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "PART_ROWS", 10**6)
    monkeypatch.setattr(answering, "PART_BYTES", 1)
    stop(rows, blocks=3)

    assert score(rows).found_done == 30
