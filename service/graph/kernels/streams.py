"""Kernels that write a stream's numbers to memory: whole words and normals; it does not know layers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.graph.kernels.numbers import block, in_order, normal, parts_of, stream_of
from service.graph.kernels.tiles import VARYING

_BLOCKS = 64  # of a stream, that one program makes


def words(numbers: Tensor, blocks: int, lane: int = 0) -> Tensor:
    """Return the first blocks of streams [K, 4] as int64 [K, blocks · 4]."""
    found = torch.empty(len(numbers), blocks * 4, dtype=torch.int64, device=numbers.device)
    with torch.cuda.device_of(numbers):
        _words[len(numbers), triton.cdiv(blocks, _BLOCKS)](found, numbers, blocks, lane, _BLOCKS)
    return found


def normals(numbers: Tensor, count: int) -> Tensor:
    """Return the first N(0, 1) numbers of streams [K, 4] as float32 [K, count]."""
    found = torch.empty(len(numbers), count, device=numbers.device)
    blocks = triton.cdiv(count, 8)
    with torch.cuda.device_of(numbers):
        _normals[len(numbers), triton.cdiv(blocks, _BLOCKS)](found, numbers, blocks, count, _BLOCKS)
    return found


@triton.jit(do_not_specialize=VARYING)
def _words(found, numbers, blocks, lane, BLOCKS: tl.constexpr):
    network, number = tl.program_id(0), tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    made = in_order(*block(stream_of(numbers, network, 4, blocks), number, lane))
    at = found + (network.to(tl.int64) * blocks + number[:, None]) * 4 + tl.arange(0, 4)[None, :]
    tl.store(at, made.to(tl.int64, bitcast=True), mask=(number < blocks)[:, None])


@triton.jit(do_not_specialize=VARYING)
def _normals(found, numbers, blocks, count, BLOCKS: tl.constexpr):
    network, first = tl.program_id(0), tl.program_id(1) * BLOCKS
    made = in_order(*block(stream_of(numbers, network, 4, blocks), first + tl.arange(0, BLOCKS), 0))
    z = normal(parts_of(made, 32).reshape([BLOCKS * 8]))
    place = first * 8 + tl.arange(0, BLOCKS * 8)
    tl.store(found + network.to(tl.int64) * count + place, z, mask=place < count)
