"""The image itself, built and run: opt-in (`-m slow`), as root of a Linux machine that has buildah.

It is built first, unless `THINNET_IMAGE` names one that is there.
"""

import csv
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from image import ROOT, Container, as_pip_here, build, buildah, config, inner_pid, root_of, running

from service import Predictor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("buildah") is None or os.geteuid() != 0, reason="needs buildah, and to be root"),
]
GRACE_S = 30
ACCEPTED_S = 3  # how long the request takes that is under way when the stop comes
LIMIT_BYTES = 700 << 20  # beside the base image; torch and Arrow take 500 of them


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if "THINNET_IMAGE" in os.environ:
        yield os.environ["THINNET_IMAGE"]
        return
    tag = "localhost/thinnet-test"
    build(tag, as_pip_here(tmp_path_factory.mktemp("pip") / "pip.conf"))
    yield tag
    buildah("rmi", tag)


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[Container]:
    with root_of(image) as root:
        yield _another(Container(root, config(image)))


@pytest.fixture(scope="module")
def address(container: Container) -> Iterator[str]:
    with running(container):
        yield _address(container)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _another(container: Container, mounts: dict[Path, str] | None = None) -> Container:
    return replace(container, mounts=mounts or {}, environment={"THINNET_PORT": str(_free_port())})


def _address(container: Container) -> str:
    return f"http://127.0.0.1:{container.environment['THINNET_PORT']}"


def _ask(address: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(address + path, data), timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "models" / name / "example.json").read_text())
    return found


def test_it_serves_the_models_that_are_in_it(address: str) -> None:
    assert _ask(address, "/v2/models")["models"] == ["diabetes", "digits", "digits-dropconnect", "digits-rows"]


def test_its_answers_are_those_of_outside(address: str) -> None:
    asked = _example("diabetes") | {"passes": 200, "seed": 3}
    mine = Predictor.load(ROOT / "models" / "diabetes").predict(asked["inputs"], passes=200, seed=3)
    told = _ask(address, "/predict", asked)
    for row, mean, variance in zip(range(len(mine.mean)), told["mean"], told["variance"], strict=True):
        assert mean == pytest.approx(mine.mean[row].tolist(), rel=1e-4)
        assert variance == pytest.approx(mine.variance[row].tolist(), rel=1e-3)


@pytest.mark.usefixtures("address")
def test_it_says_that_it_is_healthy_and_does_so_cheaply(container: Container) -> None:
    start = time.monotonic()
    assert container.healthcheck() == 0
    assert time.monotonic() - start < 1.5


def test_it_says_that_it_is_not_healthy_when_nothing_answers(container: Container) -> None:
    assert _another(container).healthcheck() != 0


def test_it_is_nobody_and_writes_nowhere_but_to_tmp(container: Container) -> None:
    script = """
import os, pathlib
print(os.getuid(), os.getgid(), os.getpid())
for place in ("/", "/models", "/opt/service", "/opt/thinnet", "/opt/bytecode", "/tmp"):
    try:
        pathlib.Path(place, "probe").write_text("x")
        print("wrote", place)
    except OSError:
        pass
"""
    done = container.run("python3", "-c", script)
    assert done.stdout.splitlines() == ["10001 10001 1", "wrote /tmp"], done.stderr


def test_nothing_in_it_belongs_to_its_user_or_can_be_written_by_all(container: Container) -> None:
    for place in ("opt", "models"):
        for each in (container.root / place).rglob("*"):
            if not each.is_symlink():
                found = each.stat()
                assert found.st_uid == 0, each
                assert not found.st_mode & 0o022, each


def test_it_has_no_tools_to_build_with_and_no_tests(container: Container) -> None:
    script = """
import shutil, sys, importlib.util
tools = ("pip", "pip3", "gcc", "cc", "g++", "ld", "strip", "make", "git", "curl", "wget", "protoc")
print([tool for tool in tools if shutil.which(tool)])
print([module for module in ("pip", "setuptools", "wheel", "pytest") if importlib.util.find_spec(module)])
"""
    done = container.run("python3", "-c", script)
    assert done.stdout.splitlines() == ["[]", "[]"], done
    assert not list((container.root / "opt").rglob("tests"))
    assert not list((container.root / "models").rglob("*.py"))


def test_it_scores_a_table_as_outside(container: Container) -> None:
    script = """
import json, subprocess
import pyarrow.fs, pyarrow.parquet
command = "thinnet score /models/diabetes/example.csv --output /tmp/scored.parquet --model /models/diabetes"
subprocess.run([*command.split(), "--passes", "50", "--seed", "3", "--quiet"], check=True)
pyarrow.fs.S3FileSystem(region="eu-west-1")
print(json.dumps(pyarrow.parquet.read_table("/tmp/scored.parquet").to_pydict()))
"""
    done = container.run("python3", "-c", script)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    with (ROOT / "models" / "diabetes" / "example.csv").open() as table:
        rows = [[float(value) for value in each.values()] for each in csv.DictReader(table)]
    mine = Predictor.load(ROOT / "models" / "diabetes").predict(rows, passes=50, seed=3)
    assert told["mean"] == pytest.approx(mine.mean.flatten().tolist(), rel=1e-4)
    assert told["variance"] == pytest.approx(mine.variance.flatten().tolist(), rel=1e-3)


def test_it_starts_from_bytecode(container: Container) -> None:
    script = """
import importlib.util, os, struct, torch, service.api.server as server, http.client as client
for module in (torch, server, client):
    with open(importlib.util.cache_from_source(module.__file__), "rb") as compiled:
        magic, flags, mtime, size = struct.unpack("<4sIII", compiled.read(16))
    found = os.stat(module.__file__)
    print(flags, mtime == int(found.st_mtime), size == found.st_size)
import sys
print(sum("stale" in line for line in os.popen(f"{sys.executable} -v -c 'import service.api.server' 2>&1")))
"""
    assert container.run("python3", "-c", script).stdout.splitlines() == [*["0 True True"] * 3, "0"]


def test_it_is_small(container: Container) -> None:
    sizes = {place: _size_bytes(container.root / "opt" / place) for place in ("thinnet", "bytecode", "service")}
    sizes["models"] = _size_bytes(container.root / "models")
    total = sum(sizes.values())
    print(f"{total / 1e6:.0f} MB:", {place: f"{size / 1e6:.1f} MB" for place, size in sizes.items()})
    assert total < LIMIT_BYTES


def _size_bytes(folder: Path) -> int:
    return sum(each.lstat().st_size for each in folder.rglob("*"))


def test_a_mount_replaces_its_models(container: Container, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "digits", tmp_path / "mine")
    replaced = _another(container, {tmp_path: "/models"})
    tmp_path.chmod(0o755)
    with running(replaced):
        assert _ask(_address(replaced), "/v2/models")["models"] == ["mine"]


def test_a_mount_that_it_may_not_read_is_refused_in_a_line(container: Container, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    done = _another(container, {tmp_path: "/models"}).run(*container.config["Cmd"])
    assert done.returncode == 1
    assert done.stderr == "error: /models/model.toml: Permission denied; let user 10001 read it\n"


def test_a_stop_answers_what_was_accepted_and_ends_with_0(container: Container) -> None:
    stopped = _another(container)
    asked = _example("diabetes") | {"passes": 10_000, "inputs": _example("diabetes")["inputs"] * 20}
    with running(stopped) as process, ThreadPoolExecutor() as pool:
        _ask(_address(stopped), "/predict", asked)
        start = time.monotonic()
        _ask(_address(stopped), "/predict", asked)
        times_longer = ACCEPTED_S / (time.monotonic() - start)
        asked["inputs"] *= min(100, max(1, round(times_longer)))

        accepted = pool.submit(_ask, _address(stopped), "/predict", asked)
        time.sleep(ACCEPTED_S / 5)
        assert not accepted.done()
        start = time.monotonic()
        os.kill(inner_pid(process), signal.SIGTERM)
        assert process.wait(GRACE_S) == 0
        print(f"stopped after {time.monotonic() - start:.1f} s")
        assert len(accepted.result()["mean"]) == len(asked["inputs"])
