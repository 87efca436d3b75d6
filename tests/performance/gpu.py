"""Measure kernels, passes and servers on a GPU: `python tests/performance/gpu.py [--device cuda:1] [--only LeNet]`.

First the kernels on the layer of Wan et al. 2013, beside their floors at the rates of the same run; then all workloads
against what a user would pick instead, all with products in float32; what coarser products change; and servers under
load. With `--small` all of it runs at sizes that Triton's interpreter can do without a GPU, to see that it runs:
`TRITON_INTERPRET=1 python tests/performance/gpu.py --device cpu --small`.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import gpu_served  # noqa: E402 # the paths come first
import torch  # noqa: E402
from contenders import (  # noqa: E402
    Baal,
    Contender,
    HandFolded,
    HandLoop,
    Moments,
    Thinnet,
    TorchUncertainty,
    peer_versions,
    ready,
)
from devices import Machine, finished  # noqa: E402
from judge import Judge  # noqa: E402
from precision import COLUMNS, compared  # noqa: E402
from report import geometric, head, line  # noqa: E402
from timing import medians_s, metered  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from workloads import WORKLOADS, Block, Encoder, Recurrent, Workload, small_mlp  # noqa: E402

from service import Predictor  # noqa: E402
from service.dropout import Alpha, Bernoulli, DropConnectLinear, Gaussian  # noqa: E402
from service.graph import kernels  # noqa: E402
from service.graph.forms import path_on  # noqa: E402
from service.graph.precision import FLOAT32, ruled  # noqa: E402
from service.repository import check_device  # noqa: E402

_ROWS = (1, 64, 1024)


@dataclass(frozen=True)
class OnDevice(Workload):
    """A workload whose network and inputs are on a device."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009 # it never changes

    @staticmethod
    def of(workload: Workload, device: torch.device) -> "OnDevice":
        """Move a workload."""
        return OnDevice(**{each.name: getattr(workload, each.name) for each in fields(workload)}, device=device)

    def build(self) -> nn.Module:
        """Make the network there."""
        return super().build().to(self.device)

    def inputs(self, rows: int) -> Tensor:
        """Return the rows there."""
        return super().inputs(rows).to(self.device)


class Compiled(HandFolded):
    """The hand-folded network through `torch.compile`."""

    name = "hand-folded, compiled"
    compiles = True
    backend = "inductor"

    def __init__(self, workload: Workload) -> None:
        """Compile the network."""
        super().__init__(workload)
        self.network = torch.compile(self.network, backend=self.backend)


class CompiledBriefly(Compiled):
    """The same through the backend that generates nothing."""

    backend = "eager"


def small_dropconnect(sampled: bool) -> nn.Sequential:
    """Return a network that the interpreter runs soon."""
    return nn.Sequential(DropConnectLinear(6, 9, sampled=sampled), nn.ReLU(), DropConnectLinear(9, 2, sampled=sampled))


def small_convolutions() -> nn.Sequential:
    """Return convolutions, a residual block and dropout of channels and units."""
    stem = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2), Block(4, 4, 1))
    return nn.Sequential(*stem, nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, 3))


SMALL = (
    Workload("MLP 13-50-1", small_mlp, (13,), (1, 3), 20, 2),
    Workload("Convolutions", small_convolutions, (1, 8, 8), (1, 3), 20, 3),
    Workload("TransformerEncoder", lambda: Encoder(8, 2, 16, 1), (4, 8), (1, 3), 20),
    Workload("LSTM", lambda: Recurrent(4, 6), (5, 4), (1, 3), 20),
    Workload("DropConnect, masks", lambda: small_dropconnect(False), (6,), (3,), 20),
    Workload("DropConnect, sampled", lambda: small_dropconnect(True), (6,), (3,), 20),
)


def kernel_lines(machine: Machine, small: bool) -> list[str]:
    """Return the table of kernels, or why there is none."""
    if why := kernels.refusal(machine.device):
        return [f"No kernels on {machine.device}: {why}"]
    from wan import Layer  # it takes Triton

    layer = Layer(machine, small)
    made = [layer.exact(p, own) for own in (True, False) for p in (0.5, 0.25, 0.3)] + [layer.sampled(0.5)]
    sites = (Bernoulli(0.5), "relu"), (Bernoulli(0.3), "gelu"), (Gaussian(0.3), "silu"), (Alpha(0.1), "tanh")
    made += [layer.activated(*site, own) for own in (True, False) for site in sites] + [layer.grouped(0.5)]
    columns = ("kernel", "µs", "plain product, µs", "× of it", "floor, µs", "× of it", "error")
    return [
        *head(columns),
        *(
            line(
                [
                    *(each.name, f"{each.seconds * 1e6:.1f}", f"{each.product_s * 1e6:.1f}"),
                    *(f"{each.seconds / each.product_s:.2f}", f"{each.floor_s * 1e6:.1f}"),
                    *(f"{each.seconds / each.floor_s:.2f}", f"{each.error:.1e}"),
                ]
            )
            for each in made
        ),
    ]


def measure(
    workload: OnDevice, rows: int, rounds: int, peers: Sequence[type[Contender]]
) -> dict[str, tuple[float, str]]:
    """Return what each contender takes, and what is wrong with its answer."""
    x, judged, last_s = workload.inputs(rows), {}, {}
    judge, works = Judge.of(workload, x), {}
    for name, run in ready(workload, (Thinnet, *peers)).items():
        work = finished(lambda run=run: run(x), workload.device)
        try:
            if run.compiles:
                work()
            first = metered(work)
        except torch.OutOfMemoryError:
            judged[name] = (math.inf, "out of memory")
            continue
        answer: Moments = first.answer  # type: ignore[assignment] # a contender's
        works[name], last_s[name], judged[name] = work, first.seconds, (0.0, judge.fault(answer))
    medians = medians_s(works, last_s, rounds)
    return {name: (medians.get(name, taken), fault) for name, (taken, fault) in judged.items()}


def workload_line(workload: OnDevice, rows: int, found: dict[str, tuple[float, str]], names: Sequence[str]) -> str:
    """Return a line of the table: thinnet's time, then how many times as long each other took."""
    ours, fault = found[Thinnet.name]
    cells = [workload.name, str(rows), str(workload.passes), f"{ours * 1e3:.2f}{' wrong' if fault else ''}"]
    for name in names:
        taken, wrong = found.get(name, (math.nan, ""))
        cells.append("-" if math.isnan(taken) else f"{taken / ours:.2f}" + (f" {wrong}" if wrong else ""))
    return line([*cells, f"{best_peer_s(found) / ours:.2f}"])


def best_peer_s(found: dict[str, tuple[float, str]]) -> float:
    """Return what the fastest right peer took."""
    right = [taken for name, (taken, fault) in found.items() if name != Thinnet.name and not fault]
    return min(right, default=math.nan)


def passes_table(chosen: Sequence[Workload], asked: argparse.Namespace, device: torch.device) -> None:
    """Print every workload's passes by thinnet and by its peers."""
    peers = (HandLoop, HandFolded, CompiledBriefly if asked.small else Compiled, Baal, TorchUncertainty)
    names, ratios = [each.name for each in peers], []
    columns = ("workload", "rows", "passes", "thinnet, ms", *(f"{name}, ×" for name in names), "best right peer, ×")
    print(*head(columns), sep="\n")
    for workload in chosen:
        for rows in workload.rows if asked.small else _ROWS:
            moved = OnDevice.of(workload, device)
            found = measure(moved, rows, asked.rounds, peers)
            ratios.append(best_peer_s(found) / found[Thinnet.name][0])
            print(workload_line(moved, rows, found, names), flush=True)
    right = [each for each in ratios if not math.isnan(each)]  # it is not a number where no peer was right
    print(f"\nGeometric mean of the best right peer: {geometric(right):.2f}×\n")


def precision_table(chosen: Sequence[Workload], asked: argparse.Namespace, device: torch.device) -> None:
    """Print what coarse products save and change."""
    print(*head(COLUMNS), sep="\n")
    for workload in chosen:
        moved, rows = OnDevice.of(workload, device), workload.rows[-1] if asked.small else _ROWS[1]
        moved = replace(moved, passes=4) if asked.small else moved
        predictor = Predictor.capture(moved.build(), moved.inputs(2), device=device)
        print(*compared(moved, predictor, rows, asked.rounds), sep="\n", flush=True)


def served_table(asked: argparse.Namespace, device: torch.device) -> None:
    """Print what servers answer, where there is what asks them."""
    names = tuple(each for each in gpu_served.NAMES if asked.only in each)
    if why := gpu_served.missing():
        print(f"\nNo server was measured: {why}")
    elif names:
        print("", *head(gpu_served.COLUMNS), sep="\n")
        print("", *gpu_served.measure_served(device, names[:1] if asked.small else names, asked.small), sep="\n")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender has its turn")
    parser.add_argument("--small", action="store_true", help="sizes for the interpreter")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.export's own deprecations
    device = check_device(asked.device)
    if asked.small:
        kernels.DEVICES.add(device.type)
    chosen = [each for each in (SMALL if asked.small else WORKLOADS) if asked.only in each.name]
    with ruled(FLOAT32, device):  # for the peers too: torch's convolutions on a GPU are in TF32 otherwise
        machine = Machine.measured(device, asked.small)
        ways = "\n".join(f"{what} on {device}: {way}" for what, way in path_on(device))
        print(f"{peer_versions()}; {machine}\n{ways}\n", flush=True)
        print(*kernel_lines(machine, asked.small), "", sep="\n", flush=True)
        passes_table(chosen, asked, device)
    precision_table(chosen, asked, device)
    served_table(asked, device)
    print(f"\nAt the end: {Machine.measured(device, asked.small)}")


if __name__ == "__main__":
    main()
