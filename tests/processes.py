"""A server in processes of its own, seen from outside: its workers, what it says, its end.

What it says goes to files, so that no pipe fills.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

START_S = 60.0
SHORT_S = 20.0


@dataclass
class Running:
    """A `thinnet serve` that runs."""

    process: subprocess.Popen[str]
    out: Path
    err: Path
    port: int = 0

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def connect(self, timeout_s: float = SHORT_S) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send one request on a connection of its own and return status and answer."""
        connection = self.connect()
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether each worker that there is answers; a connection may reach any."""
        return all(self.ask("GET", "/v2/health/ready")[0] == 200 for _ in range(4))

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return self.process.wait(SHORT_S)

    def told(self) -> str:
        return self.out.read_text() + self.err.read_text()


def until(true: Callable[[], bool], within_s: float = SHORT_S) -> None:
    """Wait until something is true; it is looked at at least once after the time."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)


@contextmanager
def running(
    scratch: Path, *arguments: str, wait: bool = True, before: str = "", **environment: str
) -> Iterator[Running]:
    """Run `thinnet serve` on a free port of the loopback, waiting until it has said what it serves.

    Python given as `before` runs first, in the same process.
    """
    out, err = scratch / "out.txt", scratch / "err.txt"
    code = f"import sys; from service.cli import main; {before}\nsys.argv[0] = 'thinnet'; main()"
    command = [sys.executable, "-c", code, "serve", *arguments, "--port", "0"]
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
    found = Running(process, out, err)
    try:
        if wait:
            until(lambda: " at http://" in out.read_text() or process.poll() is not None, START_S)
            assert process.poll() is None, found.told()
            found.port = int(out.read_text().split(" at http://")[1].split(" ")[0].rsplit(":")[1])
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(SHORT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(SHORT_S)


@contextmanager
def server(*arguments: str, **environment: str) -> Iterator[str]:
    """Run `thinnet serve` and give its address."""
    with TemporaryDirectory() as scratch, running(Path(scratch), *arguments, **environment) as found:
        yield f"http://127.0.0.1:{found.port}"
