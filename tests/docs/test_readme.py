"""The README cannot lie: its tables are the code's, and its commands give the answers that it shows."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from processes import server
from tables import README, with_tables

ROOT = README.parent
SHOWN_ADDRESS = "http://127.0.0.1:8000"
READMES = [README, *sorted((ROOT / "service").glob("**/README.md"))]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(README.read_text())


def shown_calls() -> list[tuple[str, str]]:
    """Return (command, shown answer) for every curl that is followed by a JSON block."""
    return [
        (call, answer)
        for (kind, call), (then, answer) in pairwise(blocks())
        if kind == "bash" and call.startswith("curl") and then == "json"
    ]


def close(mine: Any, shown: Any) -> bool:
    if isinstance(shown, dict):
        return list(mine) == list(shown) and all(close(mine[key], shown[key]) for key in shown)
    if isinstance(shown, list):
        return len(mine) == len(shown) and all(map(close, mine, shown))
    if isinstance(shown, float):
        return bool(mine == pytest.approx(shown, rel=1e-4, abs=1e-6))
    return bool(mine == shown)


def test_every_table_is_the_codes() -> None:
    text = README.read_text()
    assert with_tables(text) == text, "run python tests/docs/tables.py"


def test_the_first_two_commands_are_the_set_up_and_the_tests() -> None:
    first, second = [text for kind, text in blocks() if kind == "bash"][:2]
    for command in (first, second):
        assert command.startswith("python3.11 -m venv .venv && ")
        assert len(command.strip().splitlines()) == 1
    assert "thinnet serve" in first
    assert "pytest" in second


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with server(str(ROOT / "models"), OMP_NUM_THREADS="2") as found:
        yield found


def test_the_calls_shown_give_the_values_shown(address: str) -> None:
    calls = shown_calls()
    assert calls
    for command, shown in calls:
        found = subprocess.run(
            ["bash", "-c", command.replace(SHOWN_ADDRESS, address)], capture_output=True, cwd=ROOT, check=True
        )
        assert close(json.loads(found.stdout), json.loads(shown)), found.stdout.decode()


def test_every_python_block_runs_and_prints_what_stands_beside_it(address: str, tmp_path: Path) -> None:
    script = "\n".join(text for kind, text in blocks() if kind == "python").replace(SHOWN_ADDRESS, address)
    assert SHOWN_ADDRESS not in script
    assert address in script
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"^print\(.*\)  # (.+)$", script, re.MULTILINE)


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_readme_names_is_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
