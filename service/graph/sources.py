"""What torch.fx keeps of every graph that was ever written: let go of, or a process grows with each plan that is asked.

It does not know graphs.
"""

import linecache

from torch.fx import graph_module


def forget_sources() -> None:
    """Let go of the source of generated graphs and of all that it names, weights among them.

    They are kept for tracebacks, which then have no such lines, and for TorchScript, which is not used.
    """
    kept: dict[str, str] = graph_module._loader.eval_cache
    for place in list(kept):
        linecache.cache.pop(place, None)
    kept.clear()
