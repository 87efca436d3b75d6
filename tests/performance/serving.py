"""How many threads should compute in a worker, and whether they should spin: `python tests/performance/serving.py`.

Servers that differ only in that are asked in turn by wrk, 16 connections of 1 row and 100 passes; the best round is
told, since what else the machine does only takes away. `--extra FOLDER`, once or more, compares servers that find a
folder's packages (uvloop, httptools) with one that does not, and asks `/v2/health/live` too.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path[:0] = [str(place) for place in Path(__file__).parents[1:3]]

from processes import Running, running  # noqa: E402
from workloads import lenet, resnet, wide_mlp  # noqa: E402

from service import Predictor  # noqa: E402

SHAPES = {"lenet": (1, 28, 28), "wide": (64,), "resnet": (3, 64, 64)}
CONFIGURATIONS: dict[str, dict[str, str]] = {
    "1 worker, 1 thread": {"THINNET_THREADS": "1"},
    "1 worker, 2 threads": {"THINNET_THREADS": "2"},
    "1 worker, 2 threads, sleeping at once": {"THINNET_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "1 worker, 2 threads, asleep after 0.05 ms": {"THINNET_THREADS": "2", "GOMP_SPINCOUNT": "1000"},
    "1 worker, 2 threads, spinning as by default": {"THINNET_THREADS": "2", "GOMP_SPINCOUNT": "300000"},
    "2 workers, 1 thread each": {"THINNET_THREADS": "1", "THINNET_WORKERS": "2"},
}


@dataclass
class Rate:
    """What wrk tells."""

    per_s: float = 0.0
    p99_ms: float = float("inf")

    def better(self, other: "Rate") -> "Rate":
        return Rate(max(self.per_s, other.per_s), min(self.p99_ms, other.p99_ms))


def save(folder: Path) -> None:
    torch.manual_seed(0)
    for name, made in (("lenet", lenet()), ("wide", wide_mlp()), ("resnet", resnet())):
        Predictor.capture(made.eval(), torch.randn(2, *SHAPES[name])).save(folder / name)


def ask(server: Running, path: str, script: Path | None, seconds: int, connections: int) -> Rate:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", f"http://127.0.0.1:{server.port}{path}"]
    said = subprocess.run([*command, *(["-s", str(script)] if script else [])], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "Non-2xx" not in said.stdout, said.stdout
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", said.stdout).groups()  # type: ignore[union-attr] # it says so
    per_s = float(re.search(r"Requests/sec:\s+([\d.]+)", said.stdout)[1])  # type: ignore[index] # the same
    return Rate(per_s, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit])


def scripts(folder: Path) -> dict[str, Path]:
    made = {}
    for name, shape in SHAPES.items():
        body = json.dumps({"model": name, "inputs": torch.randn(1, *shape).tolist(), "passes": 100})
        made[name] = folder / f"{name}.lua"
        made[name].write_text(f"wrk.method = 'POST'\nwrk.body = '{body}'\n")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--extra", action="append", default=[])
    options = parser.parse_args()
    configurations = dict(CONFIGURATIONS)
    if options.extra:
        configurations = {"plain": {"THINNET_THREADS": "1"}}
        for folder in options.extra:
            configurations[folder] = {"THINNET_THREADS": "1", "PYTHONPATH": folder}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        home = Path(scratch)
        save(home / "models")
        asked: dict[str, tuple[str, Path | None]] = {
            name: ("/predict", script) for name, script in scripts(home).items()
        }
        if options.extra:
            asked["live"] = ("/v2/health/live", None)
        servers = {}
        for number, (name, environment) in enumerate(configurations.items()):
            (home / str(number)).mkdir()
            servers[name] = stack.enter_context(running(home / str(number), str(home / "models"), **environment))
        best = {(name, what): Rate() for name in servers for what in asked}
        for _ in range(options.rounds):
            for (name, what), rate in best.items():
                best[name, what] = rate.better(ask(servers[name], *asked[what], options.seconds, options.connections))
        for (name, what), rate in best.items():
            print(f"{what:6} {name:45} {rate.per_s:8.0f}/s  p99 {rate.p99_ms:7.1f} ms")


if __name__ == "__main__":
    main()
