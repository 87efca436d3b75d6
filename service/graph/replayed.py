"""Passes whose shapes come again, captured in a CUDA graph and replayed: one launch in place of one for each operator.

What the trunk gave and the noise are the graph's inputs: they are copied to where it reads them. A graph is of exact
shapes and numbers of rows and passes, kept while it is among those used last; whoever runs passes fills the rows up to
a round number, so that few graphs serve any number of rows. A first replay is compared with the plain passes; where
graphs do not serve, plain passes do, and the log says so once. It does not know what passes compute.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from service.graph.proof import close
from service.graph.tuned import next_round

_GRAPHS_KEPT = 16
_SHAPES_COUNTED = 256
_TIMES = 3  # that shapes come before they are captured: the first ones make what libraries make at first use
_FEW_ROWS = 64  # up to as many, a row more costs next to nothing beside a launch
_log = logging.getLogger("thinnet")
Work = Callable[[Sequence[Any], Sequence[Tensor]], list[Tensor]]
Replay = Callable[[], None]


class Capture(Protocol):
    """How a device captures."""

    def is_ready(self) -> bool:
        """Tell whether it can here and now."""

    def __call__(self, work: Callable[[], list[Tensor]]) -> tuple[Replay, list[Tensor]]:
        """Capture some work; give what does it again, and where its results will be."""


class OnGpu:
    """Captures on a GPU; its graphs share their memory, for they run one after the other in one stream.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def is_ready(self) -> bool:
        """Tell whether the caller is in the stream in which all graphs run."""
        return torch.cuda.current_stream(self._device) == torch.cuda.default_stream(self._device)

    def __call__(self, work: Callable[[], list[Tensor]]) -> tuple[Replay, list[Tensor]]:
        """Capture some work, whatever other threads ask of the GPU meanwhile."""
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.stream(torch.cuda.current_stream(self._device))  # a capture that fails leaves us in its own
        captured = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        with torch.cuda.device(self._device), here, captured:
            outputs = work()
        return graph.replay, outputs


def capture_on(device: torch.device) -> Capture | None:
    """Return how a device captures; None where it does not."""
    return OnGpu(device) if device.type == "cuda" and torch.cuda.is_available() else None


def replays_on(device: torch.device) -> str:
    """Say whether passes are captured on a device, and which."""
    if device.type != "cuda":
        return f"no CUDA graphs on {device}"
    kept = f"the last {_GRAPHS_KEPT} of each plan, rows filled up to a round number"
    return f"CUDA graphs of passes whose shapes come for the {_TIMES}rd time, {kept}"


@dataclass(frozen=True)
class _Graph:
    inputs: Sequence[Any]
    replay: Replay
    outputs: Sequence[Tensor]

    def run(self, given: Sequence[Any]) -> list[Tensor]:
        for mine, theirs in zip(self.inputs, given, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(theirs)
        self.replay()
        return [each.clone() for each in self.outputs]  # the next replay writes there


class Replays:
    """The graphs of one plan.

    Args:
        capture: How they are captured; None where the device has no graphs.

    Attributes:
        fault: Why none are captured any more, once they could not be.
    """

    def __init__(self, capture: Capture | None) -> None:
        self._capture, self._lock = capture, Lock()
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._counts: dict[Hashable, int] = {}
        self.fault: str | None = None

    def rows_for(self, rows: int) -> int:
        """Return how many rows should run in place of so many: a round number where passes are captured."""
        return round_rows(rows) if self._serves() else rows

    def run(self, kind: Hashable, work: Work, values: Sequence[Any], noises: Sequence[Tensor]) -> list[Tensor]:
        """Run passes by their graph, or plainly where they have none.

        Args:
            kind: What the work depends on besides its inputs.
            work: Runs the passes.
            values: What the trunk gave.
            noises: The noise of each site.
        """
        if not self._serves():
            return work(values, noises)
        given, count = [*values, *noises], len(values)
        key = kind, tuple(map(_shape, given))
        with self._lock:
            if found := self._graphs.get(key):
                self._graphs.move_to_end(key)
                return found.run(given)
            expected = self._plainly(work, values, noises)
            if self._is_due(key):
                self._try(key, lambda held: work(held[:count], held[count:]), given, expected)
            return expected

    def _serves(self) -> bool:
        return self._capture is not None and not self.fault and self._capture.is_ready()

    def _plainly(self, work: Work, values: Sequence[Any], noises: Sequence[Tensor]) -> list[Tensor]:
        try:
            return work(values, noises)
        except torch.OutOfMemoryError:
            self._graphs.clear()  # passes need the memory more
            raise

    def _is_due(self, key: Hashable) -> bool:
        if len(self._counts) >= _SHAPES_COUNTED:
            self._counts.clear()
        self._counts[key] = self._counts.get(key, 0) + 1
        return self._counts[key] >= _TIMES

    def _try(
        self, key: Hashable, work: Callable[[list[Any]], list[Tensor]], given: Sequence[Any], expected: list[Tensor]
    ) -> None:
        """Keep a graph, if it can be captured and gives what is expected."""
        assert self._capture is not None
        del self._counts[key]
        held = [each.clone() if isinstance(each, Tensor) else each for each in given]
        try:
            graph = _Graph(held, *self._capture(lambda: work(held)))
            is_right = all(close(mine, theirs) for mine, theirs in zip(graph.run(given), expected, strict=True))
        except torch.OutOfMemoryError:
            self._graphs.clear()  # for the same reason
        except Exception as error:  # whatever an operator or a driver raises
            self._give_up(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
        else:
            if not is_right:
                return self._give_up("a replay differs from the passes that were captured")
            if len(self._graphs) >= _GRAPHS_KEPT:
                self._graphs.popitem(last=False)
            self._graphs[key] = graph
        return None

    def _give_up(self, fault: str) -> None:
        self.fault = fault
        self._graphs.clear()
        _log.warning("passes run without CUDA graphs: %s", fault)


def round_rows(rows: int) -> int:
    """Return the round number that is at least as many rows: a power of two, of many rows at most 28 % more."""
    return 1 << (rows - 1).bit_length() if rows <= _FEW_ROWS else next_round(rows)


def _shape(value: Any) -> Hashable:
    return (value.dtype, value.shape, value.stride()) if isinstance(value, Tensor) else value
