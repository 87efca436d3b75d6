"""Kernels that write a stream's numbers to memory: whole words, normals, and truth values at any rate.

It does not know layers. Truth values at most rates must be written: `noise.py` settles its ties in their order, so no
element knows its own before those in front of it are counted.
"""

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


def kept(numbers: Tensor, q: float, count: int) -> Tensor:
    """Return the first Bernoulli(q) truth values of streams [K, 4], 32 to a word, as int32 [K, words]."""
    first, rest = divmod(round(q * (1 << 40)), 1 << 32)
    blocks = triton.cdiv(count, 32)
    grid = (len(numbers), triton.cdiv(blocks, _BLOCKS))
    ties = torch.empty(len(numbers), blocks, dtype=torch.int32, device=numbers.device)
    settling = words(numbers, triton.cdiv(4 + count // 32, 8), lane=1).view(torch.int32)
    found = torch.empty_like(ties)
    with torch.cuda.device_of(numbers):
        _count_ties[grid](ties, numbers, blocks, first, _BLOCKS)
        before = (ties.cumsum(1) - ties).to(torch.int32)
        _settle[grid](found, numbers, before, settling, settling.shape[1], blocks, first, rest, _BLOCKS)
    return found


@triton.jit(do_not_specialize=VARYING)
def _words(found, numbers, blocks, lane, BLOCKS: tl.constexpr):
    network, number = tl.program_id(0), tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    made = in_order(*block(stream_of(numbers, network, blocks), number, lane))
    at = found + (network.to(tl.int64) * blocks + number[:, None]) * 4 + tl.arange(0, 4)[None, :]
    tl.store(at, made.to(tl.int64, bitcast=True), mask=(number < blocks)[:, None])


@triton.jit(do_not_specialize=VARYING)
def _normals(found, numbers, blocks, count, BLOCKS: tl.constexpr):
    network, first = tl.program_id(0), tl.program_id(1) * BLOCKS
    made = in_order(*block(stream_of(numbers, network, blocks), first + tl.arange(0, BLOCKS), 0))
    z = normal(parts_of(made, 32).reshape([BLOCKS * 8]))
    place = first * 8 + tl.arange(0, BLOCKS * 8)
    tl.store(found + network.to(tl.int64) * count + place, z, mask=place < count)


@triton.jit
def _bytes(numbers, network, blocks, number, BLOCKS: tl.constexpr):
    """Return the 32 bytes of blocks [BLOCKS, 32]."""
    made = in_order(*block(stream_of(numbers, network, blocks), number, 0))
    return parts_of(made, 8).reshape([BLOCKS, 32]).to(tl.int32)


@triton.jit(do_not_specialize=VARYING)
def _count_ties(ties, numbers, blocks, first, BLOCKS: tl.constexpr):
    network, number = tl.program_id(0), tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    tied = (_bytes(numbers, network, blocks, number, BLOCKS) == first).to(tl.int32)
    tl.store(ties + network.to(tl.int64) * blocks + number, tl.sum(tied, 1), mask=number < blocks)


@triton.jit(do_not_specialize=VARYING)
def _settle(found, numbers, before, settling, most, blocks, first, rest, BLOCKS: tl.constexpr):
    network, number = tl.program_id(0), tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    values = _bytes(numbers, network, blocks, number, BLOCKS)
    tied = values == first
    at = network.to(tl.int64) * blocks + number
    earlier = tl.load(before + at, mask=number < blocks, other=0)
    rank = earlier[:, None] + tl.cumsum(tied.to(tl.int32), 1) - tied.to(tl.int32)
    place = network.to(tl.int64) * most + tl.minimum(rank, most - 1)
    word = tl.load(settling + place, mask=tied & (number < blocks)[:, None], other=0).to(tl.uint32, bitcast=True)
    keep = (values < first) | (tied & (word.to(tl.int64) < rest))
    bits = keep.to(tl.int32) << tl.arange(0, 32)[None, :]
    tl.store(found + at, tl.sum(bits, 1), mask=number < blocks)
