"""Requests a second and p99 of servers on a device, thinnet's and LitServe's; it does not know what else is measured.

wrk asks (on Debian: `apt-get install wrk`); LitServe is optional, `pip install litserve==0.2.19`. What is not there is
left out.
"""

import argparse
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from workloads import WORKLOADS

NAMES = ("LeNet", "TransformerEncoder")
COLUMNS = ("workload", "clients", "server", "requests/s", "p50, ms", "p99, ms", "others")


def missing() -> str:
    """Return why nothing can be measured here, if so."""
    absent = [name for name, there in (("wrk", shutil.which("wrk")), ("psutil", find_spec("psutil"))) if not there]
    return f"{', '.join(absent)} not installed" if absent else ""


def measure_served(device: torch.device, names: tuple[str, ...] = NAMES, small: bool = False) -> list[str]:
    """Print a line for each server under each load, and return what thinnet reaches beside the best LitServe.

    Args:
        device: Where the networks run.
        names: Those of the workloads.
        small: Whether a second of one caller is enough.
    """
    sys.path.append(str(Path(__file__).parents[1] / "load"))
    from throughput import beside_litserve

    has_litserve = find_spec("litserve") is not None
    told = argparse.Namespace(
        device=str(device),
        clients=(1,) if small else (1, 32, 256),
        seconds=1 if small else 5,
        batches=() if not has_litserve else (1,) if small else (1, 32, 256),
        queues=("fast",),
        litserve_python=sys.executable,
    )
    with tempfile.TemporaryDirectory() as place:
        rows = beside_litserve(told, [each for each in WORKLOADS if each.name in names], Path(place))
    found = []
    for workload, clients in dict.fromkeys((row.workload, row.clients) for row in rows):
        own = [row for row in rows if (row.workload, row.clients) == (workload, clients)]
        best = max((row.measured.per_s for row in own if row.server.startswith("LitServe")), default=0.0)
        mine = {row.server: row.measured.per_s for row in own if row.server.startswith("thinnet")}
        if best:
            found += [f"{workload}, {clients} clients, {name}: {per_s / best:.2f}×" for name, per_s in mine.items()]
    return found or ["LitServe is not installed: thinnet alone was measured"]
