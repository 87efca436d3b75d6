"""Tensors to a GPU and back without waiting for what it computes, by pinned memory; it does not know what they are.

Everything is computed in one stream, in the order in which it is launched. Each way of copying has a stream beside it,
so that what one request sends and receives is copied while another is computed. Two rules keep the order: whatever is
launched after something was sent finds it there, and what is received is copied once all that was launched before is
done. A copy from memory that is not pinned would wait for the GPU instead.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

_APART = -1  # a priority whose streams are none of those that graphs are captured in


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the CPU to a GPU it is there for all that is launched from now on."""
    if x.is_cpu and device.type == "cpu":
        return x
    if not x.is_cpu or device.type != "cuda" or not torch.cuda.is_available():
        return x.to(device)
    computing, sending = torch.cuda.current_stream(device), _stream(device, "sending")
    with torch.cuda.stream(sending):
        there = x.pin_memory().to(device, non_blocking=True)
    computing.wait_stream(sending)
    there.record_stream(computing)  # else what is sent next might take its memory while it is read
    return there


class Receipt:
    """Tensors on their way to the CPU.

    Args:
        moved: They, by name; before `ended` they hold anything.
        ended: When the last is there; None where all are.
    """

    def __init__(self, moved: list[dict[str, Tensor]], ended: torch.cuda.Event | None = None) -> None:
        self._moved, self._ended = moved, ended

    def is_ready(self) -> bool:
        """Tell whether all are there."""
        return self._ended is None or self._ended.query()  # type: ignore[no-untyped-call] # torch's

    def tensors(self) -> list[dict[str, Tensor]]:
        """Wait until all are there, and return them."""
        if self._ended is not None:
            self._ended.synchronize()
        return self._moved


def received(found: Sequence[Mapping[str, Tensor]]) -> Receipt:
    """Begin to bring tensors to the CPU, from one GPU at most; who wants them waits for them there."""
    whole = [{name: x.contiguous() for name, x in each.items()} for each in found]
    device = next((x.device for each in whole for x in each.values() if x.is_cuda), None)
    if device is None:
        return Receipt(whole)
    receiving = _stream(device, "receiving")
    receiving.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(receiving):
        moved = [{name: _moved(x, receiving) for name, x in each.items()} for each in whole]
    return Receipt(moved, receiving.record_event())


def _moved(x: Tensor, receiving: torch.cuda.Stream) -> Tensor:
    if x.is_cuda:
        x.record_stream(receiving)  # else what is computed next might take its memory while it is copied
    return x.to("cpu", non_blocking=True)


@lru_cache
def _stream(device: torch.device, way: str) -> torch.cuda.Stream:
    """Return the stream of one way of copying."""
    return torch.cuda.Stream(device, priority=_APART)  # type: ignore[no-untyped-call] # torch's
