"""u = (M / q ∘ [W b]) [x; 1] for many networks, each mask made in registers inside the product (DropConnect, exact).

It does not know plans. Masks are those of `DropConnect`, bit for bit, made from their stream where they are multiplied;
no memory holds them. At rates that no byte settles it holds how many ties are in front of each output (`ties.py`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.graph.kernels.numbers import in_order, parts_of, stream_of, words_from
from service.graph.kernels.ties import Rate, rank_at, settle, settled
from service.graph.kernels.tiles import VARYING, interpreted, multiply

_STEP, _OUT = 64, 32  # inputs at a time, and outputs of a program
_FEW_ROWS, _MOST_ROWS = 16, 64  # rows of a program
_MANY_WARPS = {"num_warps": 8}  # with four, registers spill
_FEW_OUT, _NETWORKS = 8, 8  # where each network has one row: outputs and networks of a program


def masked_product(noise: Tensor, q: float, x: Tensor, parameters: Tensor, bias: int | None) -> Tensor:
    """Return u [K, T, out], in float32.

    Args:
        noise: What `ties.counted` returned for K networks, a segment for each output.
        q: The probability of keeping.
        x: The inputs [H, T, in], those of network k at k mod H.
        parameters: [W b …] [out, in + biases], in the inputs' type.
        bias: The bias's column, where there is one.
    """
    networks, (inputs, rows, inner), (outside, columns) = len(noise), x.shape, parameters.shape
    found = torch.empty(networks, rows, outside, device=x.device)
    rate = Rate.of(q)
    shared = {
        **rate.arguments(noise, outside * columns),
        "scale": 1 / q,
        "end": inner if bias is None else bias,
        "BIAS": bias is not None,
        "GROUPS": 1 if rate.width == 1 else 2,
        "WIDEN": interpreted(),
    }
    sizes = (networks, inputs, rows, inner, outside, columns)
    given = (found, noise.contiguous(), x.contiguous(), parameters.contiguous(), *sizes)
    with torch.cuda.device_of(x):
        if rows == 1:
            grid = triton.cdiv(networks, _NETWORKS), triton.cdiv(outside, _FEW_OUT)
            _by_vectors[grid](*given, **shared, NETWORKS=_NETWORKS, OUT=_FEW_OUT)
        else:
            tall = _FEW_ROWS if rows <= _FEW_ROWS else _MOST_ROWS
            tiles = networks, triton.cdiv(outside, _OUT), triton.cdiv(rows, tall)
            _by_matrices[tiles](*given, **shared, STEP=_STEP, ROWS=tall, OUT=_OUT, **_MANY_WARPS)
    return found


@triton.jit
def _numbers(words, WIDTH: tl.constexpr):
    """Return the numbers in words [*, K], as [*, K · 64 / WIDTH]."""
    return parts_of(words, WIDTH).reshape(words.shape[:-1] + [words.shape[-1] * (64 // WIDTH)])


@triton.jit
def _are_kept(numbers, first, WIDTH: tl.constexpr):
    return numbers != 0 if WIDTH == 1 else numbers < first


@triton.jit
def _words(noise, network, stride, element, blocks, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    """Return the words that begin with elements [*, 1]: 256 bits for each of GROUPS, [*, GROUPS · 4]."""
    start = (element + tl.arange(0, GROUPS) * (256 // WIDTH)) * WIDTH
    words = in_order(*words_from(stream_of(noise, network, stride, blocks), start))
    return words.reshape(words.shape[:-2] + [GROUPS * 4])


@triton.jit
def _number(noise, network, stride, element, blocks, WIDTH: tl.constexpr):
    """Return the number of each element."""
    word, _, _, _ = words_from(stream_of(noise, network, stride, blocks), element * WIDTH)
    return word & ((1 << WIDTH) - 1)


@triton.jit(do_not_specialize=VARYING)
def _by_matrices(
    found, noise, x, parameters, networks, inputs, rows, inner, outside, columns,
    stride, blocks, settling, first, rest, scale, end,
    BIAS: tl.constexpr, WIDTH: tl.constexpr, SETTLE: tl.constexpr, GROUPS: tl.constexpr, WIDEN: tl.constexpr,
    STEP: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    network = tl.program_id(0)
    out, row = tl.program_id(1) * OUT + tl.arange(0, OUT), tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    is_out, is_row = (out < outside)[:, None], (row < rows)[:, None]
    x += (network % inputs).to(tl.int64) * rows * inner
    at_weight = out.to(tl.int64)[:, None] * columns
    each: tl.constexpr = GROUPS * 256 // WIDTH  # columns that are made together, multiplied STEP at a time
    rank = rank_at(noise, network, stride, out, (out < outside) & SETTLE)
    total = tl.zeros([ROWS, OUT], tl.float32)
    for begin in range(0, end, each):
        words = _words(noise, network, stride, at_weight + begin, blocks, WIDTH, GROUPS)
        for start in range(begin, tl.minimum(begin + each, end), STEP):
            column = (start + tl.arange(0, STEP))[None, :]
            chosen = words
            if each != STEP:
                is_here = (tl.arange(0, GROUPS * 4) == (start - begin) // STEP)[None, :]
                chosen = tl.sum(tl.where(is_here, words, 0), 1)[:, None]
            numbers = _numbers(chosen, WIDTH)
            if SETTLE:
                keep, rank = settle(noise, network, stride, settling, numbers, column < end, rank, first, rest)
            else:
                keep = _are_kept(numbers, first, WIDTH)
            weight = tl.load(parameters + at_weight + column, is_out & (column < inner), other=0.0)
            own = tl.load(x + row.to(tl.int64)[:, None] * inner + column, is_row & (column < inner), other=0.0)
            masked = tl.where(keep, weight.to(tl.float32), 0.0).to(weight.dtype)
            total = multiply(own, tl.trans(masked), total, WIDEN)
    if BIAS:
        at_bias = out.to(tl.int64) * columns + end
        offset = tl.load(parameters + at_bias, mask=out < outside, other=0.0).to(tl.float32)
        number = _number(noise, network, stride, at_bias, blocks, WIDTH)
        keep = _are_kept(number, first, WIDTH)
        if SETTLE:
            keep = keep | ((number == first) & settled(noise, network, stride, settling, rank, rest))
        total += tl.where(keep, offset, 0.0)[None, :]
    at = found + (network.to(tl.int64) * rows + row[:, None]) * outside + out[None, :]
    tl.store(at, total * scale, mask=is_row & (out < outside)[None, :])


@triton.jit(do_not_specialize=VARYING)
def _by_vectors(
    found, noise, x, parameters, networks, inputs, rows, inner, outside, columns,
    stride, blocks, settling, first, rest, scale, end,
    BIAS: tl.constexpr, WIDTH: tl.constexpr, SETTLE: tl.constexpr, GROUPS: tl.constexpr, WIDEN: tl.constexpr,
    NETWORKS: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    network, out = tl.program_id(0) * NETWORKS + tl.arange(0, NETWORKS), tl.program_id(1) * OUT + tl.arange(0, OUT)
    is_network, is_out = network < networks, out < outside
    network = tl.minimum(network, networks - 1)
    own_x = x + (network % inputs).to(tl.int64)[:, None] * inner
    at_weight = out.to(tl.int64)[:, None] * columns
    each: tl.constexpr = GROUPS * 256 // WIDTH
    rank = rank_at(noise, network[:, None], stride, out[None, :], is_out[None, :] & SETTLE)
    total = tl.zeros([NETWORKS, OUT], tl.float32)
    for start in range(0, end, each):
        column = (start + tl.arange(0, each))[None, :]
        words = _words(noise, network[:, None, None], stride, at_weight[None] + start, blocks, WIDTH, GROUPS)
        numbers = _numbers(words, WIDTH)
        if SETTLE:
            is_own = (column < end)[None]
            keep, rank = settle(noise, network[:, None], stride, settling, numbers, is_own, rank, first, rest)
        else:
            keep = _are_kept(numbers, first, WIDTH)
        weight = tl.load(parameters + at_weight + column, is_out[:, None] & (column < inner), other=0.0)
        own = tl.load(own_x + column, mask=column < inner, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(keep, weight.to(tl.float32)[None], 0.0) * own[:, None, :], 2)
    if BIAS:
        at_bias = out.to(tl.int64) * columns + end
        offset = tl.load(parameters + at_bias, mask=is_out, other=0.0).to(tl.float32)[None, :]
        number = _number(noise, network[:, None], stride, at_bias[None, :], blocks, WIDTH)
        keep = _are_kept(number, first, WIDTH)
        if SETTLE:
            keep = keep | ((number == first) & settled(noise, network[:, None], stride, settling, rank, rest))
        total += tl.where(keep, offset, 0.0)
    at = found + network.to(tl.int64)[:, None] * outside + out[None, :]
    tl.store(at, total * scale, mask=is_network[:, None] & is_out[None, :])
