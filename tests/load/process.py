"""A server in a process of its own, for tests that load or break it: its address, memory, log and end.

What it prints goes to a file, so that no pipe fills under load; it does not know what is asked.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

START_S = 120
END_S = 40


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        address: Where it listens.
        process: The process that was started; with several workers, their parent.
        log: The file that it prints to.
    """

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def tree(self) -> list[psutil.Process]:
        """Return the process and all that it started and that still run."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def memory_bytes(self) -> int:
        """Return the resident memory of the whole tree."""
        total = 0
        for each in self.tree():
            with suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
        return total

    def compute_s(self) -> float:
        """Return the processor time that the whole tree has used."""
        total = 0.0
        for each in self.tree():
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system
        return total

    def open_sockets(self) -> int:
        """Return how many connections are open at the server's side."""
        return sum(len(each.net_connections(kind="tcp")) for each in self.tree())

    def told(self) -> list[dict[str, Any]]:
        """Return the lines of the log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(END_S)


@contextmanager
def serving(
    folder: Path | str, log: Path, *arguments: str, logs_fail: bool = False, **environment: str
) -> Iterator[Served]:
    """Run `thinnet serve` on a free port of the loopback.

    Args:
        folder: The models.
        log: Where it prints to.
        arguments: More options of the command.
        logs_fail: Standard error is a full device, and standard output a pipe without a reader.
        environment: Settings.
    """
    command = [sys.executable, "-m", "service", "serve", str(folder), *arguments, "--port", "0"]
    with log.open("wb") as printed, Path("/dev/full").open("wb") as full:
        out, err = (subprocess.PIPE, full) if logs_fail else (printed, subprocess.STDOUT)
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **environment})
    try:
        if process.stdout is not None:
            address = _told(process.stdout.readline().decode())
            process.stdout.close()
        else:
            address = _await_address(process, log)
        yield Served(address, process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if " at http://" in line:
                return _told(line)
        time.sleep(0.1)
    raise AssertionError(f"the server does not listen: {log.read_text()[-2000:]}")


def _told(line: str) -> str:
    return line.split(" at ")[1].split(" ")[0]
