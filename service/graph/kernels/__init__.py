"""Kernels for a GPU, in Triton: masks and other noise are drawn where they are used, and never stored.

It does not know plans. Triton is optional, so its modules here are imported when first needed: `counted` and
`counted_sites` alone know them. With `TRITON_INTERPRET=1` they run on the CPU, slowly.

    numbers         Philox4x64-10 in registers: words from any bit of a stream, normals
    ties            truth values at rates that no byte settles
    tiles           the product of two tiles
    streams         numbers written to memory
    masked          exact masks, made inside the product
    sampled         both moments from one reading of W and x, then all passes
    laws            what element-wise noise does, and who shares a draw; without Triton
    activated       a site's noise and the activation function in front of it, for all passes
    grouped         products of what each pass keeps, all passes in one launch
    counted         what the engine puts into a graph for weights: noise is where the numbers begin
    counted_sites   the same for sites on activations
"""

from importlib.util import find_spec

import torch

DEVICES = {"cuda"}
"""The types of devices that kernels serve."""


def refusal(device: torch.device) -> str | None:
    """Return why kernels do not serve a device; None where they do."""
    if device.type not in DEVICES:
        return f"they serve {' and '.join(sorted(DEVICES))}, not {device.type}"
    if find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    return None


def unmade(variant: str) -> str:
    """Return why kernels do not serve sites of a variant whose noise none of them makes."""
    return f"they make no {variant} noise"


def fault_of(error: Exception) -> str:
    """Return what was wrong with a kernel, in a line: a compiler's or a driver's error may have many."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
