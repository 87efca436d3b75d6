"""Prove that a captured graph is the network: its eval output with everything off, in-place operations or not.

It does not know how the graph came to be.
"""

from typing import Any

import torch
from torch import Tensor, fx

from service.errors import CaptureFailed
from service.graph.program import Program
from service.graph.sites import activation_site


def prove_capture(program: Program, example: tuple[Tensor, ...], expected: list[Tensor]) -> None:
    """Compare the graph with everything off, sites sharing memory as in eval, with the module's eval output.

    Raises:
        CaptureFailed: They differ.
    """
    with torch.no_grad():
        found = program.graph(*(each.clone() for each in example))
    compared = [each for each in expected if each.dtype.is_floating_point]
    for name, mine, theirs in zip(program.outputs, found, compared, strict=True):
        if not close(mine, theirs):
            worst = float((mine - theirs).abs().max()) if mine.shape == theirs.shape else float("nan")
            raise CaptureFailed(
                f"with every site off, output {name!r} differs from the module's eval output by up to {worst:.3g}; "
                "some part computes differently in training mode, or is random in eval mode"
            )


def prove_purity(program: Program, pure: Program, example: tuple[Tensor, ...]) -> None:
    """Compare the graph without in-place operations with the one with them, sites off but fresh.

    Raises:
        CaptureFailed: They differ.
    """
    with torch.no_grad():
        before = _FreshSites(program.graph).run(*(each.clone() for each in example))
        after = pure.graph(*example)
    if not all(close(mine, theirs) for mine, theirs in zip(after, before, strict=True)):
        raise CaptureFailed("the graph without in-place operations differs from the one with them; use none")


def close(mine: Tensor, theirs: Tensor, rtol: float = 1e-4) -> bool:
    """Tell whether two outputs are equal to rounding, relative to their size."""
    if mine.shape != theirs.shape:
        return False
    scale = theirs[theirs.isfinite()].abs().max().item() if theirs.isfinite().any() else 0.0
    return torch.allclose(mine.to(theirs.dtype), theirs, rtol=rtol, atol=rtol * max(scale, 1e-6) / 10, equal_nan=True)


class _FreshSites(fx.Interpreter):
    """Run the canonical graph with each site returning memory of its own, as an active one does."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return value.clone() if n.target is activation_site and len(n.args) == 1 else value
