"""How much memory a run holds at once."""

from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes of tensors that torch's allocator held during a run, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(changes, default=0)
