"""What a device is seen to do, and how long it takes; it does not know networks.

On a GPU many calls are captured in one graph and replayed, so that launching them takes no part in their time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timing import seconds

_CALLS, _ROUNDS = 20, 5


@dataclass(frozen=True)
class Machine:
    """A device and its rates.

    Attributes:
        device: Where.
        bandwidth: Bytes that a copy reads and writes, per second.
        rate: Operations of float32 products, per second.
    """

    device: torch.device
    bandwidth: float
    rate: float

    @staticmethod
    def measured(device: torch.device, small: bool) -> "Machine":
        """Copy and multiply."""
        source, side = torch.ones(1 << (20 if small else 28), device=device), 256 if small else 8192
        target, square = torch.empty_like(source), torch.randn(side, side, device=device)
        copied_s = device_s(lambda: target.copy_(source), device)
        return Machine(device, 2 * source.nbytes / copied_s, 2 * side**3 / device_s(lambda: square @ square, device))

    def __str__(self) -> str:
        """Name it and tell its rates."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        return (
            f"{name}: {self.bandwidth / 1e9:.0f} GB/s copied, {self.rate / 1e9:.0f} G operations/s in float32 products"
        )

    def floor_s(self, moved: float, operations: float) -> float:
        """Return the least that moving so many bytes and so many operations take, done at the same time."""
        return max(moved / self.bandwidth, operations / self.rate)


def device_s(work: Callable[[], object], device: torch.device) -> float:
    """Return what a call takes on a device, the least of some rounds on a GPU."""
    work()
    if device.type != "cuda":
        return seconds(work)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            work()
    return min(_replay_s(graph) for _ in range(_ROUNDS)) / _CALLS


def _replay_s(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def finished(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return a work that is over when its call is."""

    def run() -> object:
        answer = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return answer

    return run
