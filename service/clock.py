"""How long chunks of passes take where they run; it does not know what they are of.

A GPU is told of a chunk and the call returns at once. While a chunk runs the next one's noise is drawn and it is
launched; then the first is waited for, so that no more than two are ahead of whoever comes next.
"""

from time import perf_counter

import torch

Taken = tuple[int, float]  # passes, and their seconds
_LEAST_S = 1e-6


class Clock:
    """Times chunks one after the other.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda" and torch.cuda.is_available()
        self._began_s = 0.0
        self._began: torch.cuda.Event | None = None
        self._running: tuple[int, torch.cuda.Event, torch.cuda.Event] | None = None

    def begin(self) -> None:
        """Begin a chunk."""
        self._began_s = perf_counter()
        if self._on_gpu:
            self._began = self._now()

    def end(self, passes: int) -> Taken | None:
        """End a chunk and return the last one that is known of: itself, or on a GPU the one before it, if any."""
        if self._began is None:
            return passes, max(perf_counter() - self._began_s, _LEAST_S)
        before, self._running = self._running, (passes, self._began, self._now())
        if before is None:
            return None
        passes, began, ended = before
        ended.synchronize()
        return passes, max(began.elapsed_time(ended) / 1e3, _LEAST_S)  # it tells milliseconds

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch's
        event.record(torch.cuda.current_stream(self._device))
        return event
