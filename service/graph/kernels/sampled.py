"""u ~ N(W x + b, (p / q)(W² x² + b²)) for many passes, from one reading of W and x (DropConnect's sampled inference).

It does not know plans. One program sums both moments of a tile, then draws every pass's normals and writes it; neither
masked nor squared weights are held anywhere. The normals are those of `DropConnectSampled`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.graph.kernels.numbers import block, in_order, normal, parts_of, stream_of
from service.graph.kernels.tiles import VARYING, interpreted, multiply

_TILE, _STEP = 32, 32  # rows and outputs of a program; inputs at a time
_PASSES = 8  # that are drawn together where all rows share their normals
_PROGRAMS = 256  # enough to keep a device busy: passes are parted among programs where tiles alone are fewer


def sampled_product(
    numbers: Tensor, p: float, x: Tensor, parameters: Tensor, bias: int | None, rows: int, passes: int
) -> Tensor:
    """Return u [S, B, out], in float32.

    Args:
        numbers: Coordinates [S · R, 4] of the normals; R is 1 where all rows share them, or B.
        p: The probability of dropping.
        x: The inputs [B, in] of all passes, or of each [S · B, in].
        parameters: [W b …] [out, in + biases], in the inputs' type.
        bias: The bias's column, where there is one.
        rows: B.
        passes: S.
    """
    (held, inner), (outside, columns) = x.shape, parameters.shape
    found = torch.empty(passes, rows, outside, device=x.device)
    shared = held == rows and len(numbers) == passes
    tiles = triton.cdiv(held, _TILE) * triton.cdiv(outside, _TILE)
    own = passes * rows // held  # passes that take the same inputs
    parts = max(1, min(triton.cdiv(own, _PASSES), _PROGRAMS // tiles))
    together = triton.cdiv(triton.cdiv(own, parts), _PASSES) * _PASSES
    grid = triton.cdiv(held, _TILE), triton.cdiv(outside, _TILE), triton.cdiv(own, together)
    sizes = (held, rows, len(numbers) // passes, own, together, inner, outside, columns, bias or 0)
    given = (found, numbers.contiguous(), x.contiguous(), parameters.contiguous(), *sizes, p / (1 - p))
    with torch.cuda.device_of(x):
        _sampled[grid](*given, bias is not None, shared, _TILE, _TILE, _STEP, _PASSES, interpreted())
    return found


@triton.jit
def _square(x):
    wide = x.to(tl.float32)
    return (wide * wide).to(x.dtype)


@triton.jit
def _moments(
    x, parameters, row, out, held, inner, outside, columns, bias, ratio,
    BIAS: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Return mean and standard deviation of a tile [ROWS, OUT]."""
    mean = tl.zeros([row.shape[0], out.shape[0]], tl.float32)
    squares = tl.zeros([row.shape[0], out.shape[0]], tl.float32)
    at_x, at_weight = x + row.to(tl.int64)[:, None] * inner, parameters + out.to(tl.int64)[None, :] * columns
    is_row, is_out = (row < held)[:, None], (out < outside)[None, :]
    for start in range(0, inner, STEP):
        column = start + tl.arange(0, STEP)
        own = tl.load(at_x + column[None, :], is_row & (column < inner)[None, :], other=0.0)
        weight = tl.load(at_weight + column[:, None], (column < inner)[:, None] & is_out, other=0.0)
        mean = multiply(own, weight, mean, WIDEN)
        squares = multiply(_square(own), _square(weight), squares, WIDEN)
    if BIAS:
        offset = tl.load(at_weight + bias, mask=is_out, other=0.0).to(tl.float32)
        mean += offset
        squares += offset * offset
    return mean, tl.sqrt(squares * ratio)


@triton.jit
def _normals(numbers, network, out, outside, OUT: tl.constexpr):
    """Return the normals of networks [N] at outputs that begin at a multiple of 8: [N, OUT]."""
    stream = stream_of(numbers, network[:, None], 4, tl.cdiv(outside, 8))
    words = in_order(*block(stream, (out // 8 + tl.arange(0, OUT // 8))[None, :], 0))
    return normal(parts_of(words, 32).reshape([network.shape[0], OUT]))


@triton.jit(do_not_specialize=VARYING)
def _sampled(
    found, numbers, x, parameters, held, rows, networks, own, together, inner, outside, columns, bias, ratio,
    BIAS: tl.constexpr, SHARED: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, STEP: tl.constexpr,
    PASSES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    first_out, first = tl.program_id(1) * OUT, tl.program_id(2) * together
    row, out = tl.program_id(0) * ROWS + tl.arange(0, ROWS), first_out + tl.arange(0, OUT)
    mean, deviation = _moments(x, parameters, row, out, held, inner, outside, columns, bias, ratio, BIAS, STEP, WIDEN)
    is_here = (row < held)[:, None] & (out < outside)[None, :]
    last = tl.minimum(first + together, own)
    if SHARED:
        for start in range(first, last, PASSES):
            number = start + tl.arange(0, PASSES)
            z = _normals(numbers, tl.minimum(number, own - 1), first_out, outside, OUT)
            u = mean[None] + deviation[None] * z[:, None, :]
            at = (number.to(tl.int64)[:, None] * rows + row[None, :])[:, :, None] * outside + out[None, None, :]
            tl.store(found + at, u, mask=is_here[None] & (number < last)[:, None, None])
    else:
        place = tl.minimum(row, held - 1)
        for start in range(first, last):
            number = (place // rows) * own + start
            z = _normals(numbers, number * networks + (place % rows) % networks, first_out, outside, OUT)
            at = (number.to(tl.int64) * rows + place % rows)[:, None] * outside + out[None, :]
            tl.store(found + at, mean + deviation * z, mask=is_here)
