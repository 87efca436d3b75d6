"""u = (M / q ∘ [W b]) [x; 1] for many networks, each mask made in registers inside the product (DropConnect, exact).

It does not know plans. Masks are those of `DropConnect`, bit for bit. At rates in steps of 2⁻⁸ they are made from their
stream where they are multiplied, and no memory holds them; at other rates (see `streams.py`) a bit each is read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.graph.kernels import streams
from service.graph.kernels.numbers import in_order, parts_of, stream_of, words_from
from service.graph.kernels.tiles import VARYING, interpreted, multiply

_BELOW_A_BYTE = 32  # of the 40 bits of a rate
_STEP, _OUT = 64, 32  # inputs at a time, and outputs of a program
_FEW_ROWS, _MOST_ROWS = 16, 64  # rows of a program
_MANY_WARPS = {"num_warps": 8}  # with four, registers spill
_FEW_OUT, _NETWORKS = 8, 8  # where each network has one row: outputs and networks of a program


def is_made(q: float) -> bool:
    """Tell whether masks at this rate can be made in registers."""
    return round(q * (1 << 40)) % (1 << _BELOW_A_BYTE) == 0


def held(numbers: Tensor, q: float, count: int) -> Tensor:
    """Return what `masked_product` takes for networks of these coordinates [K, 4]: those, or their masks' bits."""
    return numbers if is_made(q) else streams.kept(numbers, q, count)


def masked_product(noise: Tensor, q: float, x: Tensor, parameters: Tensor, bias: int | None) -> Tensor:
    """Return u [K, T, out], in float32.

    Args:
        noise: What `held` returned for K networks.
        q: The probability of keeping.
        x: The inputs [H, T, in], those of network k at k mod H.
        parameters: [W b …] [out, in + biases], in the inputs' type.
        bias: The bias's column, where there is one.
    """
    networks, (inputs, rows, inner), (outside, columns) = len(noise), x.shape, parameters.shape
    found = torch.empty(networks, rows, outside, device=x.device)
    width = 1 if q == 0.5 else 8
    made = is_made(q)
    shared = {
        "first": round(q * 256),
        "blocks": triton.cdiv(outside * columns * width, 256) if made else noise.shape[1],
        "scale": 1 / q,
        "bias": bias or 0,
        "BIAS": bias is not None,
        "MADE": made,
        "WIDTH": width,
        "GROUPS": 1 if width == 1 else 2,
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
def _are_kept(words, first, WIDTH: tl.constexpr):
    """Return the truth values in words [*, K], as [*, K · 64 / WIDTH]."""
    numbers = parts_of(words, WIDTH)
    keep = numbers != 0 if WIDTH == 1 else numbers < first
    return keep.reshape(words.shape[:-1] + [words.shape[-1] * (64 // WIDTH)])


@triton.jit
def _words(noise, network, element, blocks, WIDTH: tl.constexpr, GROUPS: tl.constexpr):
    """Return the words that begin with elements [*, 1]: 256 bits for each of GROUPS, [*, GROUPS · 4]."""
    start = (element + tl.arange(0, GROUPS) * (256 // WIDTH)) * WIDTH
    words = in_order(*words_from(stream_of(noise, network, blocks), start))
    return words.reshape(words.shape[:-2] + [GROUPS * 4])


@triton.jit
def _read(noise, network, element, blocks):
    """Return the truth values of elements from their bits in memory."""
    word = tl.minimum(element >> 5, blocks - 1)
    return ((tl.load(noise + network.to(tl.int64) * blocks + word) >> (element & 31).to(tl.int32)) & 1) != 0


@triton.jit
def _kept_bias(noise, network, element, first, blocks, MADE: tl.constexpr, WIDTH: tl.constexpr):
    """Return the truth value of each element."""
    if MADE:
        word, _, _, _ = words_from(stream_of(noise, network, blocks), element * WIDTH)
        number = word & ((1 << WIDTH) - 1)
        keep = number != 0 if WIDTH == 1 else number < first
    else:
        keep = _read(noise, network, element, blocks)
    return keep


@triton.jit(do_not_specialize=VARYING)
def _by_matrices(
    found, noise, x, parameters, networks, inputs, rows, inner, outside, columns, bias, first, blocks, scale,
    BIAS: tl.constexpr, MADE: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, WIDEN: tl.constexpr,
    STEP: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    network = tl.program_id(0)
    out, row = tl.program_id(1) * OUT + tl.arange(0, OUT), tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    is_out, is_row = (out < outside)[:, None], (row < rows)[:, None]
    x += (network % inputs).to(tl.int64) * rows * inner
    at_weight = out.to(tl.int64)[:, None] * columns
    each: tl.constexpr = GROUPS * 256 // WIDTH  # columns that are made together, multiplied STEP at a time
    total = tl.zeros([ROWS, OUT], tl.float32)
    for begin in range(0, inner, each):
        if MADE:
            words = _words(noise, network, at_weight + begin, blocks, WIDTH, GROUPS)
        for start in range(begin, tl.minimum(begin + each, inner), STEP):
            column = (start + tl.arange(0, STEP))[None, :]
            if not MADE:
                keep = _read(noise, network, at_weight + column, blocks)
            elif each == STEP:
                keep = _are_kept(words, first, WIDTH)
            else:
                chosen = (tl.arange(0, GROUPS * 4) == (start - begin) // STEP)[None, :]
                keep = _are_kept(tl.sum(tl.where(chosen, words, 0), 1)[:, None], first, WIDTH)
            weight = tl.load(parameters + at_weight + column, is_out & (column < inner), other=0.0)
            own = tl.load(x + row.to(tl.int64)[:, None] * inner + column, is_row & (column < inner), other=0.0)
            masked = tl.where(keep, weight.to(tl.float32), 0.0).to(weight.dtype)
            total = multiply(own, tl.trans(masked), total, WIDEN)
    if BIAS:
        at_bias = out.to(tl.int64) * columns + bias
        offset = tl.load(parameters + at_bias, mask=out < outside, other=0.0).to(tl.float32)
        total += tl.where(_kept_bias(noise, network, at_bias, first, blocks, MADE, WIDTH), offset, 0.0)[None, :]
    at = found + (network.to(tl.int64) * rows + row[:, None]) * outside + out[None, :]
    tl.store(at, total * scale, mask=is_row & (out < outside)[None, :])


@triton.jit(do_not_specialize=VARYING)
def _by_vectors(
    found, noise, x, parameters, networks, inputs, rows, inner, outside, columns, bias, first, blocks, scale,
    BIAS: tl.constexpr, MADE: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, WIDEN: tl.constexpr,
    NETWORKS: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    network, out = tl.program_id(0) * NETWORKS + tl.arange(0, NETWORKS), tl.program_id(1) * OUT + tl.arange(0, OUT)
    is_network, is_out = network < networks, out < outside
    network = tl.minimum(network, networks - 1)
    own_x = x + (network % inputs).to(tl.int64)[:, None] * inner
    at_weight = out.to(tl.int64)[:, None] * columns
    each: tl.constexpr = GROUPS * 256 // WIDTH
    total = tl.zeros([NETWORKS, OUT], tl.float32)
    for start in range(0, inner, each):
        column = (start + tl.arange(0, each))[None, :]
        if MADE:
            words = _words(noise, network[:, None, None], at_weight[None] + start, blocks, WIDTH, GROUPS)
            keep = _are_kept(words, first, WIDTH)
        else:
            keep = _read(noise, network[:, None, None], (at_weight + column)[None], blocks)
        weight = tl.load(parameters + at_weight + column, is_out[:, None] & (column < inner), other=0.0)
        own = tl.load(own_x + column, mask=column < inner, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(keep, weight.to(tl.float32)[None], 0.0) * own[:, None, :], 2)
    if BIAS:
        at_bias = out.to(tl.int64) * columns + bias
        offset = tl.load(parameters + at_bias, mask=is_out, other=0.0).to(tl.float32)[None, :]
        keep = _kept_bias(noise, network[:, None], at_bias[None, :], first, blocks, MADE, WIDTH)
        total += tl.where(keep, offset, 0.0)
    at = found + network.to(tl.int64)[:, None] * outside + out[None, :]
    tl.store(at, total * scale, mask=is_network[:, None] & is_out[None, :])
