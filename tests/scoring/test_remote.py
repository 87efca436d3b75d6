"""A table scored at a server is the table scored here, and whatever the server says wrong is told."""

import csv
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from service import Predictor
from service.errors import (
    BadRequest,
    InvalidInput,
    ModelNotFound,
    NotFound,
    NotReady,
    RemoteFault,
    ThinnetError,
    TooLarge,
)
from service.scoring.local import score_locally
from service.scoring.remote import score_remotely

DATATYPES = {"float32": "FP32", "int64": "INT64"}
_NO_PASSES = ("model", "version", "inputs")


class Fake:
    """A server of one model that notes what it was asked, and can be told to misbehave.

    Attributes:
        asked: The bodies of `POST /predict`.
        replies: What to answer a path with instead: a status and a body, or None to hang up.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.models = ["people"]
        self.asked: list[dict[str, Any]] = []
        self.replies: dict[str, tuple[int, bytes] | None] = {}
        self.told: dict[str, Any] = {}
        self.url = ""

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v2/models":
            return {"models": self.models}
        return self.predict(body) if path == "/predict" else self.describe()

    def describe(self) -> dict[str, Any]:
        inputs = [
            {"name": x.name, "datatype": DATATYPES[x.dtype], "shape": [-1, *x.shape], "features": list(x.features)}
            for x in self.predictor.inputs
        ]
        tasks = [{"name": y.name, "task": y.task, "labels": list(y.labels)} for y in self.predictor.outputs]
        return {"name": "people", "versions": ["1", "2"], "inputs": inputs, "tasks": tasks, "sites": [], **self.told}

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        rows = torch.tensor(body["inputs"])
        plan = {name: value for name, value in body.items() if name not in _NO_PASSES}
        prediction = self.predictor.predict(rows, **plan)
        (output,) = self.predictor.outputs
        values: dict[str, Any] = {name: x.tolist() for name, x in prediction.outputs[output.name].items()}
        values["label"] = [output.labels[index] for index in values["label"]]
        told = {"model": "people", "version": 2, "passes": prediction.passes, "seed": prediction.seed, "scope": "pass"}
        return {**told, **values, "noise": "known", "notes": ["a note"] * len(rows)}


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: dict[str, Any]) -> None:
            given = fake.replies.get(self.path, (200, b""))
            if given is None:
                self.close_connection = True
                return
            status, content = given
            content = content or json.dumps(fake.answer(self.path, body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def fake(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fake = Fake(predictor)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake)) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


def assert_alike(there: Path, here: Path) -> None:
    found, expected = (list(csv.reader(path.read_text().splitlines())) for path in (there, here))
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one == other or float(one) == pytest.approx(float(other), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("scope", ["pass", "row"])
def test_a_server_gives_the_table_that_its_predictor_gives_here(
    scope: str, fake: Fake, predictor: Predictor, people: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"passes": 7, "scope": scope, "quantities": ["standard_error"]}
    score_locally(predictor, people, tmp_path / "here.csv", **asked)
    summary = score_remotely(f"{fake.url}/", people, tmp_path / "there.csv", **asked)

    assert summary.rows == 700
    assert_alike(tmp_path / "there.csv", tmp_path / "here.csv")


def test_a_tolerance_gives_the_same_table_there_and_here(
    fake: Fake, predictor: Predictor, people: Path, tmp_path: Path
) -> None:
    score_locally(predictor, people, tmp_path / "here.csv", tolerance=0.1, passes=512)
    score_remotely(fake.url, people, tmp_path / "there.csv", tolerance=0.1, passes=512)

    assert_alike(tmp_path / "there.csv", tmp_path / "here.csv")
    table = (tmp_path / "there.csv").read_text()
    assert "variance_error_red" in table.splitlines()[0]
    assert {line.rpartition(",")[2] for line in table.splitlines()[1:]} >= {"128", "256"}


def test_every_block_asks_for_the_version_that_was_there_first(fake: Fake, people: Path, tmp_path: Path) -> None:
    score_remotely(fake.url, people, tmp_path / "out.csv", model="people", passes=2)

    assert [(body["model"], body["version"], body["row_offset"]) for body in fake.asked] == [
        ("people", "2", 0), ("people", "2", 256), ("people", "2", 512),
    ]  # fmt: skip
    assert {"seed", "variant", "p", "sites"}.isdisjoint(fake.asked[0])


def test_a_version_and_a_plan_are_asked_for(fake: Fake, people: Path, tmp_path: Path) -> None:
    score_remotely(
        fake.url, people, tmp_path / "out.csv", version=1, passes=2, seed=8, variant="gaussian", p=0.3, sites={}
    )

    asked = {name: fake.asked[0][name] for name in ("version", "passes", "seed", "variant", "p", "sites")}
    assert asked == {"version": 1, "passes": 2, "seed": 8, "variant": "gaussian", "p": 0.3, "sites": {}}


def test_a_fresh_seed_is_one_for_all_blocks(fake: Fake, people: Path, tmp_path: Path) -> None:
    score_remotely(fake.url, people, tmp_path / "out.csv", passes=2, seed=None)

    assert len({body["seed"] for body in fake.asked}) == 1
    assert fake.asked[0]["seed"] > 0


def test_a_model_that_couples_its_rows_gets_them_all_at_once(fake: Fake, people: Path, tmp_path: Path) -> None:
    fake.told = {"couples_rows": True}
    score_remotely(fake.url, people, tmp_path / "out.csv", passes=2)

    assert [len(body["inputs"]) for body in fake.asked] == [700]


def test_a_cell_is_told_before_anything_is_sent(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("age,height,weight\n1,2,x\n")

    with pytest.raises(InvalidInput, match=r"line 2 \(row 0\), column 'weight' is 'x'"):
        score_remotely(fake.url, tmp_path / "in.csv", tmp_path / "out.csv")
    assert fake.asked == []


def test_several_models_must_be_chosen_from(fake: Fake, people: Path, tmp_path: Path) -> None:
    fake.models = ["people", "digits"]

    with pytest.raises(ModelNotFound, match=r"does not serve exactly one model; name one of \['people', 'digits'\]"):
        score_remotely(fake.url, people, tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("status", "error"), [(400, BadRequest), (404, NotFound), (413, TooLarge), (503, NotReady), (500, RemoteFault)]
)
def test_what_the_server_refuses_is_told_in_its_own_words(
    status: int, error: type[ThinnetError], fake: Fake, people: Path, tmp_path: Path
) -> None:
    fake.replies["/predict"] = (status, b'{"error": "too bad; do better"}')

    with pytest.raises(error, match=f"/predict answered {status}: too bad; do better") as caught:
        score_remotely(fake.url, people, tmp_path / "out.csv")
    assert type(caught.value) is error
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("path", "reply", "what"),
    [
        ("/predict", (500, b"<html>"), "/predict answered 500: Internal Server Error"),
        ("/predict", None, "/predict cannot be reached: Remote end closed connection"),
        ("/predict", (200, b"<html>"), "/predict does not answer with JSON; check the address"),
        ("/predict", (200, b"[1]"), "/predict does not answer with a JSON object"),
        (
            "/predict",
            (200, b'{"mean": [[1]]}'),
            r"gives no mean and variance for each row \(KeyError\('mean, variance'\)\)",
        ),
        ("/predict", (200, b'{"mean": [[1]], "variance": [["a"]]}'), r"no mean and variance for each row \(ValueError"),
        (
            "/predict",
            (200, b'{"mean": [[1]], "variance": [[1]]}'),
            r"mean has the shape \(1, 1\), not a value for each row",
        ),
        ("/v2/models/people", (200, b'{"name": "people"}'), r"describes no model \(KeyError\('versions'\)\)"),
    ],
)
def test_an_answer_that_is_not_as_agreed_is_told(
    path: str, reply: tuple[int, bytes] | None, what: str, fake: Fake, people: Path, tmp_path: Path
) -> None:
    fake.replies[path] = reply

    with pytest.raises(RemoteFault, match=what):
        score_remotely(fake.url, people, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_server_that_is_not_there_is_told(fake: Fake, people: Path, tmp_path: Path) -> None:
    with pytest.raises(RemoteFault, match=r"127\.0\.0\.1:1/v2/models cannot be reached: .*refused"):
        score_remotely("http://127.0.0.1:1", people, tmp_path / "out.csv")


def test_a_server_that_is_too_slow_is_told(
    fake: Fake, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()
    predict: Callable[[dict[str, Any]], dict[str, Any]] = fake.predict
    monkeypatch.setattr(fake, "predict", lambda body: stopped.wait(5) and predict(body))

    with pytest.raises(RemoteFault, match=r"/predict cannot be reached: timed out \(longer than the timeout\)"):
        score_remotely(fake.url, people, tmp_path / "out.csv", timeout_s=0.3)
    stopped.set()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://", ""])
def test_only_a_servers_address_is_opened(url: str, people: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is not a server's address; write http://host:port"):
        score_remotely(url, people, tmp_path / "out.csv")
