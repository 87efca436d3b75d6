"""Tensors to a GPU and back without waiting for what it is at, by pinned memory; it does not know what they are.

A copy from memory that is not pinned waits until all that was launched before it is done.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the CPU to a GPU the copy is ordered like anything else that is launched."""
    if x.device.type != "cpu" or device.type != "cuda" or not torch.cuda.is_available():
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def received(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, by name; all that come from a GPU are waited for once."""
    moved = {name: x.contiguous().to("cpu", non_blocking=True) for name, x in found.items()}
    if torch.cuda.is_available():
        for device in {x.device for x in found.values() if x.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # before, the values are not there
    return moved
