"""A Ray that thinnet starts: nobody else reaches it, and nothing of it is left, however the command ends."""

import signal
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import psutil
import pytest
from processes import Running, running, until

MODELS = Path(__file__).parents[2] / "models"
ASK = {"model": "diabetes", "passes": 20, "inputs": [[48, 1, 21.6, 87, 183, 103.2, 70, 3, 3.8918, 69]]}
RENEWS_S = 90.0
ENDS_S = 90.0  # Ray's agents look for a minute whether a Ray that was killed comes back

pytestmark = pytest.mark.slow


@pytest.fixture
def models(tmp_path: Path) -> Path:
    copytree(MODELS / "diabetes", tmp_path / "models" / "diabetes")
    return tmp_path / "models"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Return a folder whose name is short: Ray's sockets lie in it."""
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def served(tmp_path: Path, scratch: Path, models: Path) -> Iterator[Running]:
    """Two replicas in a Ray of their own."""
    with running(tmp_path, str(models), "--engine", "ray", "--min-replicas", "2", TMPDIR=str(scratch)) as found:
        yield found


def family(served: Running) -> list[psutil.Process]:
    return psutil.Process(served.process.pid).children(recursive=True)


def replicas(served: Running) -> list[psutil.Process]:
    return [each for each in family(served) if "ServeReplica" in title(each)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it is gone, or about to be
        return ""


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def metric(served: Running, name: str) -> float:
    connection = served.connect()
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_it(number: signal.Signals, served: Running, scratch: Path) -> None:
    processes = family(served)
    assert len(processes) > 4
    code = served.end(number)
    assert code == (-9 if number == signal.SIGKILL else 0), served.told()
    until(lambda: all(map(is_over, processes)), ENDS_S)
    if number != signal.SIGKILL:
        assert not list(scratch.glob("thinnet-ray-*"))


def test_other_machines_reach_replicas_alone_and_only_with_the_token(served: Running) -> None:
    for process in [psutil.Process(served.process.pid), *family(served)]:
        for each in process.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN and each.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1"):
                assert process in replicas(served), process.cmdline()
                assert answer_without_token(each.laddr.port) == grpc.StatusCode.UNAUTHENTICATED


def answer_without_token(port: int) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        try:
            ask(b"", timeout=10)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def test_a_replica_that_is_killed_is_replaced_and_nobody_notices(served: Running) -> None:
    before = replicas(served)
    assert len(before) == 2
    asked = 20
    assert [served.ask("POST", "/predict", ASK)[0] for _ in range(asked)] == [200] * asked
    before[0].kill()
    statuses = []
    until(lambda: not statuses.append(served.ask("POST", "/predict", ASK)[0]) and len(replicas(served)) == 2, RENEWS_S)
    assert set(statuses) == {200}
    until(lambda: metric(served, "thinnet_requests_total") >= asked, RENEWS_S)


def test_new_models_take_over_and_broken_ones_do_not(served: Running, models: Path) -> None:
    home, versions = models / "diabetes", []

    def version() -> Any:
        status, answer = served.ask("POST", "/predict", ASK)
        versions.append(answer.get("version"))
        return versions[-1] if status == 200 else None

    assert version() == 1
    copytree(home / "1", home / "2")
    served.send(signal.SIGHUP)
    until(lambda: version() == 2, RENEWS_S)
    rmtree(home)
    served.send(signal.SIGHUP)
    until(lambda: "the models are not read again: nothing in" in served.told(), RENEWS_S)
    assert version() == 2
    assert set(versions) <= {1, 2}, "nobody was refused meanwhile"


def test_one_line_says_why_nothing_is_served(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with running(tmp_path, str(tmp_path / "empty"), "--engine", "ray", wait=False) as found:
        assert found.process.wait(RENEWS_S) == 1
    told = found.told().strip().splitlines()
    assert told[-1] == f"error: nothing in {tmp_path}/empty can be served: it has no model folder with a model.toml"
    assert not any("Traceback" in line for line in told)
