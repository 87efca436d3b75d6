"""A table scored at a server is the table scored here, whatever becomes of the server meanwhile."""

import asyncio
import csv
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi import FastAPI
from processes import until
from served import listening
from stamina.instrumentation import set_on_retry_hooks
from torch import Tensor, nn

from service import Predictor
from service.api import create_app
from service.api.keys import Keys, make_key
from service.cli import main
from service.client import Client
from service.errors import (
    BadRequest,
    DeadlineExceeded,
    InvalidInput,
    InvalidSettings,
    ModelNotFound,
    RemoteFault,
    ServerUnreachable,
    TooLarge,
    Unauthorized,
    VersionNotFound,
)
from service.repository import Repository
from service.scoring.block import Block
from service.scoring.engine import Answers, Parameters
from service.scoring.local import score_locally
from service.scoring.remote import RemoteEngine, Server, _Piece, open_server, score_remotely
from service.scoring.request_rows import FIRST_ROWS, RequestRows
from service.settings import CallerSettings, Settings, caller_settings

ROWS, KILLS = 700, 5


class Centred(nn.Module):
    """A network whose rows see one another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop, self.head = nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.inner(x).relu())
        y: Tensor = self.head(h - h.mean(0))
        return y


@pytest.fixture(scope="module")
def folder(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    predictor.save(place / "people")
    return place


def make_app(folder: Path, keys: Keys | None = None, **limits: Any) -> FastAPI:
    return create_app(Settings(models=folder, **limits), Repository(folder), keys)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with listening(make_app(folder)) as found:
        yield found


def numbers(path: Path) -> tuple[list[str], np.ndarray]:
    """Return a result's header, and its columns but the first as numbers; a class as the length of its name."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    cells = [[float(cell) if cell[:1] in "-.0123456789" else float(len(cell)) for cell in row[1:]] for row in rows]
    return [*header, *(row[0] for row in rows)], np.array(cells)


def assert_same(found: Path, wanted: Path) -> None:
    (names, values), (wanted_names, wanted_values) = numbers(found), numbers(wanted)
    assert names == wanted_names
    np.testing.assert_allclose(values, wanted_values, rtol=1e-5, atol=1e-7)


def block(first_row: int, rows: int = 40, width: int = 3) -> Block:
    values = np.random.default_rng(first_row).normal(size=(rows, width)) * 10 + 50
    return Block("row", pa.array(range(first_row, first_row + rows)), values, first_row)


def here(predictor: Predictor, asked: Block, **plan: Any) -> dict[str, Any]:
    found = predictor.predict({predictor.inputs[0].name: asked.rows}, row_offset=asked.first_row, **plan)
    return {name: values.numpy() for name, values in next(iter(found.outputs.values())).items()}


def assert_answers(found: Answers, wanted: dict[str, Any]) -> None:
    (quantities,) = found.values()
    assert list(quantities) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(quantities[name], values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "asked",
    [
        {"passes": 7, "quantities": ["standard_error"]},
        {"passes": 7, "scope": "row"},
        {"tolerance": 0.1, "passes": 512},
        {"version": 1, "passes": 5, "seed": 8, "variant": "gaussian", "p": 0.3},
        {"passes": 5, "sites": {"2": {"variant": "gaussian", "p": 0.3}}},
    ],
    ids=["pass", "row", "tolerance", "plan", "sites"],
)
def test_a_server_gives_the_table_that_its_predictor_gives_here(
    asked: dict[str, Any], address: str, predictor: Predictor, people: Path, tmp_path: Path
) -> None:
    own = {name: value for name, value in asked.items() if name != "version"}
    score_locally(predictor, people, tmp_path / "here.csv", **own)
    summary = score_remotely(f"{address}/", people, tmp_path / "there.csv", **asked)

    assert summary.rows == ROWS
    assert (summary.run["engine"], summary.run["model"], summary.run["version"]) == ("url", "people", 1)
    assert_same(tmp_path / "there.csv", tmp_path / "here.csv")


def test_a_fresh_seed_is_one_for_all_requests(address: str, tmp_path: Path) -> None:
    (tmp_path / "same.csv").write_text("age,height,weight\n" + "40,170,70\n" * ROWS)
    summary = score_remotely(address, tmp_path / "same.csv", tmp_path / "out.csv", passes=4, seed=None)

    assert summary.run["seed"] > 0
    _, values = numbers(tmp_path / "out.csv")
    assert np.ptp(values, axis=0).max() < 1e-6


def test_what_a_server_says_of_a_model_is_what_its_predictor_says(
    address: str, predictor: Predictor, folder: Path
) -> None:
    told = open_server(address)(Parameters(), {}).described
    assert (told.model, told.version, told.couples_rows) == ("people", 1, False)
    assert (told.seed, told.passes) == (predictor.seed, predictor.passes)
    assert told.fingerprint == Predictor.load(folder / "people").fingerprint()
    (mine,), (theirs,) = predictor.inputs, told.inputs
    assert (theirs.name, theirs.dtype, theirs.shape, theirs.features) == (
        mine.name, mine.dtype, mine.shape, mine.features,
    )  # fmt: skip
    assert (told.outputs[0].task, told.outputs[0].labels) == (predictor.outputs[0].task, predictor.outputs[0].labels)


@pytest.mark.parametrize("limits", [{"max_rows": 11}, {"max_row_passes": 100}, {"max_body_bytes": 700}])
def test_a_request_that_is_too_large_is_asked_in_halves_and_none_is_as_large_again(
    limits: dict[str, int], folder: Path, predictor: Predictor
) -> None:
    with listening(make_app(folder, **limits)) as address:
        engine = open_server(Server(address))(Parameters(passes=5), {})
        assert isinstance(engine, RemoteEngine)
        found = list(engine.answers(iter([block(0), block(40)])))
        assert 1 <= engine._size.rows < FIRST_ROWS
    for each, first_row in zip(found, (0, 40), strict=True):
        assert_answers(each, here(predictor, block(first_row), passes=5))


def test_a_row_that_is_too_large_alone_is_told(folder: Path) -> None:
    with listening(make_app(folder, max_body_bytes=100)) as address:
        engine = open_server(address)(Parameters(passes=5), {})
        with pytest.raises(TooLarge, match="at most 100 bytes are read"):
            list(engine.answers(iter([block(0, 3)])))


def test_a_model_that_couples_its_rows_gets_them_all_at_once_or_says_why_not(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        coupled = Predictor.capture(Centred().eval(), torch.randn(4, 3))
    coupled.save(tmp_path / "coupled")
    with listening(make_app(tmp_path, max_rows=100)) as address:
        engine = open_server(address)(Parameters(passes=5), {})
        assert engine.described.couples_rows
        (found,) = engine.answers(iter([block(0, 100)]))
        assert_answers(found, here(coupled, block(0, 100), passes=5))
        told = r"101 rows are past the limit of 100.*; 'coupled' couples its rows, so all 101 go in one request: raise"
        with pytest.raises(TooLarge, match=told):
            list(engine.answers(iter([block(0, 101)])))


def test_requests_grow_while_they_are_short_shrink_when_long_and_stay_below_what_was_refused() -> None:
    size = RequestRows()
    size.took(FIRST_ROWS, 0.1)
    assert size.rows == 2 * FIRST_ROWS
    size.took(FIRST_ROWS, 0.1)  # it was on its way before: it says nothing of twice as many
    size.took(2 * FIRST_ROWS, 0.5)
    assert size.rows == 2 * FIRST_ROWS
    size.took(2 * FIRST_ROWS, 5.0)
    assert size.rows == FIRST_ROWS
    size.refused(FIRST_ROWS)
    size.took(FIRST_ROWS // 2, 0.1)
    assert size.rows == FIRST_ROWS // 2
    size.refused(1)
    assert size.rows == 1


def test_every_request_asks_for_the_version_that_was_there_first(predictor: Predictor, tmp_path: Path) -> None:
    predictor.save(tmp_path / "people")
    app = make_app(tmp_path, versions_kept=2)
    with listening(app) as address:
        engine = open_server(address)(Parameters(passes=5), {})

        def blocks() -> Iterator[Block]:
            yield block(0)
            other = Predictor.load(tmp_path / "people")
            other.passes = 50
            other.save(tmp_path / "people")
            app.state.serving.repository = app.state.serving.repository.reload()
            yield block(40)

        found = list(engine.answers(blocks()))
        assert open_server(address)(Parameters(), {}).described.version == 2
        assert engine.described.version == 1
    assert_answers(found[1], here(predictor, block(40), passes=5))


def test_another_network_under_the_same_version_is_no_result(
    predictor: Predictor, people: Path, tmp_path: Path
) -> None:
    predictor.save(tmp_path / "people")
    with torch.random.fork_rng():
        torch.manual_seed(9)
        net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
        other = Predictor.capture(net, torch.randn(2, 3), inputs=predictor.inputs, outputs=predictor.outputs)
    other.save(tmp_path / "others" / "people")
    app = make_app(tmp_path)
    with listening(app) as address:
        engine = open_server(address)(Parameters(passes=5), {})

        def blocks() -> Iterator[Block]:
            yield block(0)
            app.state.serving.repository = Repository(tmp_path / "others")

        with pytest.raises(RemoteFault, match="version 1 of 'people' is another network than when scoring began"):
            list(engine.answers(blocks()))


class Coming:
    """A server that goes away and comes back, at one address."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self._open = app, ExitStack()
        self.url = self._open.enter_context(listening(app))

    def leave(self) -> None:
        self._open.close()

    def come_back(self) -> None:
        self._open.enter_context(listening(self._app, port=int(self.url.rpartition(":")[2])))


def test_a_server_that_is_started_again_is_waited_for(folder: Path, predictor: Predictor) -> None:
    there = Coming(make_app(folder))
    engine = open_server(Server(there.url, retry_s=20))(Parameters(passes=5), {})

    def blocks() -> Iterator[Block]:
        yield block(0)
        there.leave()
        back = threading.Timer(0.5, there.come_back)
        back.start()
        yield block(40)
        back.join()
        yield block(80)

    found = list(engine.answers(blocks()))
    there.leave()
    for each, first_row in zip(found, (0, 40, 80), strict=True):
        assert_answers(each, here(predictor, block(first_row), passes=5))


def test_a_server_that_stays_away_ends_the_run_and_the_same_call_goes_on(
    folder: Path, predictor: Predictor, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block is a part, so that what was done before is seen to be kept."""
    monkeypatch.setattr("service.scoring.remote._BLOCK_ROWS", 100)
    monkeypatch.setattr("service.scoring.answering.PART_ROWS", 100)
    there = Coming(make_app(folder))
    asked: dict[str, Any] = {"passes": 5, "scope": "row"}
    ask = RemoteEngine._ask

    async def leaving(self: RemoteEngine, client: Any, piece: Any) -> Any:
        if piece.block.first_row == 300:
            there.leave()
        return await ask(self, client, piece)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteEngine, "_ask", leaving)
        told = r"people\.csv, rows 300 to 399: http.* cannot be reached: .*check host and port"
        with pytest.raises(ServerUnreachable, match=told):
            score_remotely(Server(there.url, retry_s=0.5, concurrency=1), people, tmp_path / "there.csv", **asked)
    assert not (tmp_path / "there.csv").exists()
    there.come_back()
    summary = score_remotely(there.url, people, tmp_path / "there.csv", **asked)
    there.leave()

    assert (summary.rows, summary.found_done) == (ROWS, 300)
    score_locally(predictor, people, tmp_path / "here.csv", **asked)
    assert_same(tmp_path / "there.csv", tmp_path / "here.csv")


def test_a_bad_cell_ends_a_run_as_it_does_here(address: str, people: Path, tmp_path: Path) -> None:
    lines = people.read_text().splitlines()
    lines[600] = lines[600].rpartition(",")[0] + ",x"
    people.write_text("\n".join(lines))
    with pytest.raises(InvalidInput, match=r"people\.csv, line 601 \(row 599\), column 'height' is 'x'"):
        score_remotely(address, people, tmp_path / "out.csv", passes=2)


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"model": "nobody"}, ModelNotFound, "there is no model 'nobody'; the models are people"),
        ({"version": 9}, VersionNotFound, "has no version '9'"),
        ({"passes": 1}, BadRequest, "passes = 1"),
        ({"quantities": ["x"]}, BadRequest, "no quantity 'x'"),
    ],
)
def test_what_the_server_refuses_is_told_in_its_own_words(
    asked: dict[str, Any], error: type[Exception], told: str, address: str, people: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        score_remotely(address, people, tmp_path / "out.csv", **asked)
    assert list(tmp_path.iterdir()) == [people]


def test_nobody_at_the_address_is_told_soon(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.carrier._FIRST_S", 0.01)
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1/v2/models cannot be reached"):
        score_remotely("http://127.0.0.1:1", people, tmp_path / "out.csv")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", ""])
def test_only_a_servers_address_is_opened(url: str, people: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is not a server's address; write http://host:port"):
        score_remotely(url, people, tmp_path / "out.csv")


def test_a_key_is_read_from_a_file_or_the_environment_and_shown_to_the_server(
    folder: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, line = make_key("alice")
    (tmp_path / "keys").write_text(line)
    (tmp_path / "key").write_text(f"{made}\n")
    with listening(make_app(folder, Keys.read(tmp_path / "keys"))) as address:
        server = Server(address, caller_settings(tmp_path / "key").key())
        assert score_remotely(server, people, tmp_path / "out.csv", passes=2).rows == ROWS
        with pytest.raises(Unauthorized, match="an API key is needed"):
            score_remotely(address, people, tmp_path / "other.csv", passes=2)
    monkeypatch.setenv("THINNET_API_KEY", made)
    assert CallerSettings().key() == made
    assert made not in repr(CallerSettings())
    monkeypatch.delenv("THINNET_API_KEY")
    assert CallerSettings().key() is None


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run `thinnet score` here and return its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["thinnet", "score", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^\d$") as caught:
            main()
        return int(str(caught.value.code))

    yield run
    set_on_retry_hooks(None)


def test_the_command_shows_a_servers_key_and_says_that_it_waits(
    command: Callable[..., int],
    folder: Path,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("service.client.carrier._FIRST_S", 0.01)
    made, line = make_key("alice")
    (tmp_path / "keys").write_text(line)
    (tmp_path / "key").write_text(made)
    asked = people, "--output", tmp_path / "out.csv", "--passes", 2
    with listening(make_app(folder, Keys.read(tmp_path / "keys"))) as address:
        assert command(*asked, "--url", address) == 1
        assert "error: an API key is needed" in capsys.readouterr().err
        assert command(*asked, "--url", address, "--api-key-file", tmp_path / "key") == 0
        assert capsys.readouterr().out.startswith("700 rows in ")
    assert command(*asked, "--url", address) == 1
    waiting, error = capsys.readouterr().err.splitlines()
    assert waiting.startswith(f"waiting: {address}/v2/models cannot be reached")
    assert error.startswith(f"error: {address}/v2/models cannot be reached")
    assert command(*asked, "--url", address, "--quiet") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), (b"\n", "is empty"), (b"\x80", "cannot be read")]
)
def test_a_file_without_a_key_is_told(content: bytes | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(InvalidSettings, match=told):
        caller_settings(tmp_path / "key").key()


class Slow:
    """A client whose server has no time for more than five rows, and says so, or says nothing."""

    def __init__(self, number: str | None) -> None:
        self.rows: list[int] = []
        self._number = number

    async def predict(self, inputs: dict[str, Any], **_: Any) -> Any:
        self.rows.append(len(inputs["x"]))
        if self.rows[-1] <= 5:
            values = np.zeros(self.rows[-1])
            return SimpleNamespace(outputs={"kind": {"mean": values, "variance": values}}, notes=())
        error = DeadlineExceeded("no answer within 60 s")
        error.request_id = self._number
        raise error


def test_a_server_that_has_no_time_for_a_request_is_asked_in_halves_and_one_that_is_silent_is_not(address: str) -> None:
    engine = open_server(address)(Parameters(), {})
    assert isinstance(engine, RemoteEngine)
    piece = _Piece(block(0), 0, 40)
    said, silent = Slow("n7"), Slow(None)
    _, found = asyncio.run(engine._ask(said, piece))  # type: ignore[arg-type] # it predicts, as a client does
    assert len(found["kind"]["mean"]) == 40
    assert said.rows == [40, 20, 10, 5, 5, 10, 5, 5, 20, 10, 5, 5, 10, 5, 5]
    with pytest.raises(DeadlineExceeded, match="no answer within 60 s"):
        asyncio.run(engine._ask(silent, piece))  # type: ignore[arg-type] # the same
    assert silent.rows == [40]


def started(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service", "serve", str(folder), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_costs_no_row(
    folder: Path, predictor: Predictor, tmp_path: Path
) -> None:
    rows = np.random.default_rng(3).normal(size=(40_000, 3)) * 10 + 50
    header = "age,height,weight"
    np.savetxt(tmp_path / "many.csv", rows, "%.4f", ",", header=header, comments="")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asked: dict[str, Any] = {"passes": 200, "scope": "row"}
    process, done, killed = started(folder, port), threading.Event(), 0

    def kill() -> None:
        nonlocal process, killed
        while killed < KILLS and not done.wait(random.uniform(0.5, 3)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process, killed = started(folder, port), killed + 1
            until(lambda: done.is_set() or answers(port), 60)

    until(lambda: answers(port), 60)
    killing = threading.Thread(target=kill)
    killing.start()
    try:
        score_remotely(f"http://127.0.0.1:{port}", tmp_path / "many.csv", tmp_path / "there.csv", **asked)
    finally:
        done.set()
        killing.join()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed > 1
    score_locally(predictor, tmp_path / "many.csv", tmp_path / "here.csv", **asked)
    assert_same(tmp_path / "there.csv", tmp_path / "here.csv")


def answers(port: int) -> bool:
    try:
        with Client(f"http://127.0.0.1:{port}", retries=0) as client:
            return client.health().ready
    except ServerUnreachable:
        return False
