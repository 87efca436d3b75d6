"""How many questions a second are answered, beside LitServe with MC dropout by hand, and beside a bare route.

`python tests/load/throughput.py` prints two tables of one run; `--help` narrows it down. One server is asked at a time,
and each network must have the same mean and variance by both before it is timed.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent), str(HERE.parent / "performance")]

from process import serving  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402
from wrk import Measured, measure  # noqa: E402

from service import Predictor  # noqa: E402

CLIENTS = (1, 32)
BATCHES = (1, 8, 32)
START_S = 90
REPEATS = 40
ERRORS = 5  # standard errors that two samples' moments may lie apart
WANTED = {"LeNet": {1: 6, 32: 10}, "ResNet, dropout head": {1: 40, 32: 40}, "MLP 13-50-1": {1: 3, 32: 3}}
OVERHEAD = 0.5
ROUNDS = 9  # in which a route and the model are asked in turn


@dataclass(frozen=True)
class Row:
    """One server under one load."""

    workload: str
    server: str
    clients: int
    measured: Measured


def post(url: str, body: bytes) -> dict[str, Any]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@dataclass(frozen=True)
class Moments:
    """Mean and variance of many passes, and the standard error of that variance."""

    mean: Tensor
    variance: Tensor
    error: Tensor


@contextmanager
def other_server(python: str, *arguments: str) -> Iterator[str]:
    """Run a script on a free port and give its `/predict` once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script, *rest = arguments
    process = subprocess.Popen(
        [python, str(HERE / script), *(each.replace("PORT", str(port)) for each in rest)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # LitServe's own processes outlive their parent
        process.wait(30)


def moments(url: str, body: bytes) -> Moments:
    """Ask again and again with other noise, and put the answers together."""
    found = []
    for seed in range(REPEATS):
        answer = post(url, body.replace(b"null", str(seed).encode()))
        found.append(torch.tensor([answer["mean"], answer["variance"]], dtype=torch.float64))
    means, variances = torch.stack(found).unbind(1)
    return Moments(means.mean(0), variances.mean(0), variances.std(0) / REPEATS**0.5)


def agree(mine: Moments, theirs: Moments, passes: int) -> bool:
    """Tell whether two servers' moments are the same within Monte-Carlo error."""
    of_mean = ((mine.variance + theirs.variance) / (passes * REPEATS)).sqrt()
    of_variance = (mine.error.square() + theirs.error.square()).sqrt()
    same_mean = ((mine.mean - theirs.mean).abs() <= ERRORS * of_mean + 1e-9).all()
    return bool(same_mean and ((mine.variance - theirs.variance).abs() <= ERRORS * of_variance + 1e-12).all())


def save(workloads: list[Workload], folder: Path) -> dict[str, dict[str, Path]]:
    """Write model folders and the bodies that ask them: with the model's own seed, and a fresh one every time."""
    bodies = {}
    for number, each in enumerate(workloads):
        predictor = Predictor.capture(each.build(), each.inputs(2))
        predictor.save(folder / "models" / f"model-{number}")
        rows = each.inputs(1).numpy().round(4).astype(float).round(4).tolist()
        asked = {"model": f"model-{number}", "inputs": rows, "passes": each.passes}
        bodies[each.name] = {"own seed": folder / f"own-{number}", "fresh seeds": folder / f"fresh-{number}"}
        bodies[each.name]["own seed"].write_text(json.dumps(asked))
        bodies[each.name]["fresh seeds"].write_text(json.dumps({**asked, "seed": None}))
    return bodies


def warm_and_measure(url: str, body: Path, clients: int, seconds: float) -> Measured:
    measure(url, body, clients, 1)
    return measure(url, body, clients, seconds)


def beside_litserve(told: argparse.Namespace, workloads: list[Workload], folder: Path) -> list[Row]:
    """Measure every workload by thinnet and by LitServe at every batch size."""
    bodies, rows, mine = save(workloads, folder), [], {}
    with serving(folder / "models", folder / "log", "--device", told.device) as own:
        for each in workloads:
            mine[each.name] = moments(f"{own.address}/predict", bodies[each.name]["fresh seeds"].read_bytes())
            for seeds, body in bodies[each.name].items():
                for clients in told.clients:
                    measured = warm_and_measure(f"{own.address}/predict", body, clients, told.seconds)
                    rows.append(Row(each.name, f"thinnet, {seeds}", clients, measured))
                    print_row(rows[-1])
    for each in workloads:
        for batch, queue in product(told.batches, told.queues):
            arguments = ("litserve_server.py", each.name, "PORT", str(batch), queue, told.device)
            with other_server(told.litserve_python, *arguments) as url:
                body = bodies[each.name]["fresh seeds"]
                if not agree(mine[each.name], moments(url, body.read_bytes()), each.passes):
                    raise SystemExit(f"{each.name}: LitServe's mean and variance are not thinnet's")
                for clients in told.clients:
                    measured = warm_and_measure(url, body, clients, told.seconds)
                    rows.append(Row(each.name, f"LitServe, batch {batch}, {queue} queue", clients, measured))
                    print_row(rows[-1])
    return rows


def beside_a_bare_route(told: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure the cheapest model, and routes that return its answer, in turn; the median of some rounds counts."""
    line = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.25), nn.Linear(4, 1)).eval()
    Predictor.capture(line, torch.randn(2, 3)).save(folder / "cheap" / "line")
    body, answer = folder / "line.json", folder / "answer.json"
    body.write_text(json.dumps({"model": "line", "inputs": [[0.1, 0.2, 0.3]]}))
    rows: list[Row] = []
    with ExitStack() as stack:
        own = f"{stack.enter_context(serving(folder / 'cheap', folder / 'cheap-log')).address}/predict"
        answer.write_text(json.dumps(post(own, body.read_bytes())))
        urls = {"thinnet": own}
        for kind, path in (("usual", "predict"), ("bytes", "bytes")):
            arguments = ("bare_server.py", "PORT", str(answer), kind)
            url = stack.enter_context(other_server(sys.executable, *arguments))
            urls[kind] = url.replace("predict", path)
        for clients in told.clients:
            found = in_turn(urls, body, clients, told.seconds)
            for kind in ("usual", "bytes"):
                workload = f"cheapest model, {kind} route"
                rows.append(Row(workload, "thinnet", clients, found["thinnet"]))
                rows.append(Row(workload, "FastAPI", clients, found[kind]))
                for row in rows[-2:]:
                    print_row(row)
    return rows


def in_turn(urls: dict[str, str], body: Path, clients: int, seconds: float) -> dict[str, Measured]:
    """Measure servers in turn, after a first round that warms them: a machine is slower for seconds; return medians."""
    rounds: list[dict[str, Measured]] = []
    for _ in range(ROUNDS + 1):
        rounds.append({name: measure(url, body, clients, max(1, seconds / ROUNDS)) for name, url in urls.items()})
    return {name: sorted((each[name] for each in rounds[1:]), key=lambda one: one.per_s)[ROUNDS // 2] for name in urls}


def print_row(row: Row) -> None:
    found = row.measured
    cells = [row.workload, str(row.clients), row.server, f"{found.per_s:.1f}", f"{found.p50_ms:.1f}"]
    print("| " + " | ".join([*cells, f"{found.p99_ms:.1f}", str(found.others)]) + " |", flush=True)


def verdicts(rows: list[Row]) -> Iterator[str]:
    """Tell each ratio, what it should be, and whether the slowest answers are faster too."""
    for workload, clients in dict.fromkeys((row.workload, row.clients) for row in rows):
        own = [row for row in rows if (row.workload, row.clients) == (workload, clients)]
        others = [row.measured for row in own if not row.server.startswith("thinnet")]
        best = max((each.per_s for each in others if each.per_s and not each.others), default=0.0)
        quickest = min((each.p99_ms for each in others if each.per_s and not each.others), default=0.0)
        for row in own:
            if row.server.startswith("thinnet") and best:
                ratio, wanted = row.measured.per_s / best, WANTED.get(workload, {}).get(clients, OVERHEAD)
                holds = "yes" if ratio >= wanted else "NO"
                p99 = f"{row.measured.p99_ms:.1f} | {quickest:.1f}"
                yield f"| {workload} | {clients} | {row.server} | {ratio:.2f} | {wanted} | {holds} | {p99} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long each load lasts")
    parser.add_argument("--only", help="a part of a workload's name, or 'bare' for the bare route alone")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES, help="LitServe's batch sizes")
    parser.add_argument("--litserve-python", default=sys.executable, help="an interpreter that has LitServe")
    parser.add_argument("--queues", nargs="+", default=["fast", "usual"], help="LitServe's queues between processes")
    parser.add_argument("--device", default="cpu", help="where networks run, of either server: cpu, cuda, cuda:1, …")
    told = parser.parse_args()
    chosen = [each for each in WORKLOADS if each.name in WANTED and (told.only or each.name) in each.name]
    print("| workload | clients | server | requests/s | p50, ms | p99, ms | others |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        rows = beside_litserve(told, chosen, Path(place)) if chosen else []
        rows += beside_a_bare_route(told, Path(place)) if told.only in (None, "bare") else []
    print("\n| workload | clients | server | × the best | wanted | holds | p99, ms | their lowest p99, ms |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(verdicts(rows)))


if __name__ == "__main__":
    main()
