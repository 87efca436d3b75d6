"""Told by SIGHUP, a server takes new versions beside the old ones; a broken one changes nothing and says why."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import Running, running, until
from torch import nn

from service import Predictor
from service.errors import InvalidModelFolder, ModelNotFound, NotReady, VersionNotFound
from service.repository import Repository

ASKED = {"model": "line", "inputs": [[1.0, 2.0, 3.0]], "passes": 20, "seed": 1}


def add_version(folder: Path, bias: float = 0.0, name: str = "line") -> Path:
    """Save a version whose mean is far from all others', so that no answer can be taken for another's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        line = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.25), nn.Linear(4, 1)).eval()
        line[2].bias.data.fill_(bias)
    return Predictor.capture(line, torch.zeros(1, 3)).save(folder / name)


def spoil(version: Path) -> None:
    """Change a byte in the middle of a network's file."""
    program = version / "program.pt2"
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 0xFF
    program.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add_version(tmp_path / "models")
    add_version(tmp_path / "models", name="other")
    return tmp_path / "models"


def test_a_network_that_is_the_same_is_kept_and_a_new_one_is_beside_it(folder: Path) -> None:
    old = Repository(folder, versions_kept=2)
    add_version(folder, 10.0)
    new = old.reload()
    assert (old.versions("line"), new.versions("line")) == ([1], [1, 2])
    assert new.predictor("line", 1) is old.predictor("line")
    assert new.predictor("other") is old.predictor("other")
    assert new.predictor("line") is new.predictor("line", 2)
    assert new.card("line").version == 2
    assert new.card("line", 1).versions == (1, 2)
    assert new.faults == new.version_faults == {}


def test_the_highest_versions_are_kept_and_others_are_refused_with_the_reason(folder: Path) -> None:
    for bias in (10.0, 20.0):
        add_version(folder, bias)
    for repository in (Repository(folder, versions_kept=2), Repository(folder, versions_kept=1).reload()):
        kept = repository.versions("line")
        assert kept == ([2, 3] if len(kept) == 2 else [3])
        with pytest.raises(VersionNotFound, match=r"version 1, is not loaded: the . highest are, here .*versions_kept"):
            repository.predictor("line", 1)
        with pytest.raises(VersionNotFound, match="has no version '4'"):
            repository.predictor("line", 4)
    assert Repository(folder).predictor("line", 1), "with no number, versions are loaded when asked for"


@pytest.mark.parametrize("fault", ["program", "manifest", "sheet"])
def test_a_broken_version_leaves_the_one_below_and_says_why(folder: Path, fault: str) -> None:
    old = Repository(folder, versions_kept=1)
    made = add_version(folder, 10.0)
    if fault == "program":
        spoil(made)
    else:
        (made / ("manifest.json" if fault == "manifest" else "model.toml")).write_text("broken = ")
    for repository in (old.reload(), Repository(folder, versions_kept=1)):
        assert repository.card("line").version == 1
        assert repository.faults == {}
        assert list(repository.version_faults) == ["line"]
        with pytest.raises(NotReady, match=r"model 'line', version 2, cannot be served: "):
            repository.predictor("line", 2)


def test_what_is_served_goes_on_where_its_file_breaks(folder: Path) -> None:
    old = Repository(folder, versions_kept=1)
    (folder / "line" / "1" / "program.pt2").write_bytes(b"cut short")
    (folder / "other" / "model.toml").write_text("broken = ")
    new = old.reload()
    for name in ("line", "other"):
        assert new.predictor(name) is old.predictor(name)
        assert name in new.version_faults
    with pytest.raises(InvalidModelFolder, match=r"nothing in .* can be served: .*program\.pt2 has 9 bytes"):
        Repository(folder)


def test_a_model_that_is_taken_away_is_gone_and_a_folder_that_is_gone_is_no_change(folder: Path) -> None:
    old = Repository(folder)
    shutil.rmtree(folder / "other")
    new = old.reload()
    assert new.names() == ["line"]
    with pytest.raises(ModelNotFound, match="there is no model 'other'; the models are line"):
        new.card("other")
    shutil.rmtree(folder)
    with pytest.raises(InvalidModelFolder, match="is not a folder of models"):
        new.reload()
    assert new.predictor("line")


def test_a_broken_model_does_not_lend_its_requests_to_the_only_other(folder: Path) -> None:
    (folder / "other" / "model.toml").write_text("broken = ")
    repository = Repository(folder)
    assert repository.names() == ["line"]
    with pytest.raises(ModelNotFound, match="several models are served, name one in `model`: line, other"):
        repository.sole_name()


def test_a_version_that_is_broken_at_the_start_is_told_of_too(folder: Path, tmp_path: Path) -> None:
    spoil(add_version(folder, 1000.0))
    with running(tmp_path, str(folder)) as found:
        assert version_now(found) == 1
        assert found.err.read_text().count("model line goes on with version 1: ") == 1


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, str(folder), "--workers", "2") as found:
        yield found


def version_now(served: Running) -> int:
    status, answer = served.ask("POST", "/predict", ASKED)
    assert status == 200, answer
    return int(answer["version"])


def test_traffic_moves_to_a_new_version_and_nobody_notices(served: Running, folder: Path) -> None:
    stop = threading.Event()
    answers: list[tuple[int, object]] = []
    faults: list[str] = []

    def call(keeps: bool) -> None:
        import json

        connection = served.connect()
        while not stop.is_set():
            try:
                connection.request("POST", "/predict", json.dumps(ASKED))
                answer = connection.getresponse()
                told = json.loads(answer.read())
            except Exception as error:
                faults.append(repr(error))
                return
            answers.append((answer.status, (told.get("version"), str(told.get("mean")))))
            if not keeps:
                connection.close()
        connection.close()

    callers = [threading.Thread(target=call, args=(each % 2 == 0,)) for each in range(4)]
    for each in callers:
        each.start()
    old = served.workers()
    add_version(folder, 1000.0)
    served.send(signal.SIGHUP)
    until(lambda: version_now(served) == 2)
    until(lambda: not set(served.workers()) & set(old))
    time.sleep(0.1)
    stop.set()
    for each in callers:
        each.join()
    assert faults == []
    assert {status for status, _ in answers} == {200}
    assert len({told for _, told in answers}) == 2, "each version has one answer"
    assert {version_now(served) for _ in range(8)} == {2}
    assert served.ask("POST", "/predict", {**ASKED, "version": 1})[1]["mean"][0][0] < 500
    assert served.told().count(" at http://") == 1
    assert served.end() == 0


def test_a_broken_version_leaves_the_server_ready_and_is_told_of(served: Running, folder: Path) -> None:
    spoil(add_version(folder, 1000.0))
    old = served.workers()
    served.send(signal.SIGHUP)
    until(lambda: len(served.workers()) == 2 and not set(served.workers()) & set(old))
    assert {version_now(served) for _ in range(4)} == {1}
    assert served.ready()
    status, answer = served.ask("GET", "/v2/models/line/versions/2/ready")
    assert status == 503
    assert "version 2, cannot be served" in answer["error"]
    assert served.err.read_text().count("model line goes on with version 1: ") == 1
    shutil.rmtree(folder)
    served.send(signal.SIGHUP)
    until(lambda: "the old ones stay" in served.err.read_text())
    assert version_now(served) == 1
