"""y = noise ∘ f(x) for many passes, the noise made in registers: sites that act element by element, unit or channel.

It does not know variants: a law and three numbers say what noise does. Where all passes share x it is read once, and
f, the activation function in front of the site, is computed where its result is used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.graph.kernels.laws import Law, Noise, Sharing
from service.graph.kernels.numbers import block, in_order, level_of, normal, number_at, parts_of, stream_of
from service.graph.kernels.ties import Rate, counted, rank_at, settle
from service.graph.kernels.tiles import VARYING

_UNITS, _FEW_UNITS = 256, 16  # of a tile: of single elements, and of what shares a draw
_INNER = 64  # elements of a tile that share a draw
_TILE = 4096  # elements
_PROGRAMS = 1024  # enough to keep a device busy: with more tiles, each program writes several passes
_WORDS = Rate(0, 0, 32)


def numbers_of(coordinates: Tensor, noise: Noise, sharing: Sharing) -> Tensor:
    """Return what `activated` takes for networks of these coordinates [K, 4]: int64 [K, 4 + counts]."""
    if noise.law is not Law.KEPT:
        return coordinates
    return counted(coordinates, noise.q, sharing.units, _units_of(sharing, _rate_of(noise)))


def _units_of(sharing: Sharing, rate: Rate) -> int:
    """Return how many units a tile has: whole blocks of them, or a few that have inner elements."""
    whole = min(_UNITS, max(triton.next_power_of_2(sharing.units), 256 // rate.width))
    return whole if sharing.inner == 1 else _FEW_UNITS


def _rate_of(noise: Noise) -> Rate:
    return Rate.of(noise.q) if noise.law is Law.KEPT else _WORDS


def activated(numbers: Tensor, noise: Noise, sharing: Sharing, x: Tensor, passes: int, function: str = "") -> Tensor:
    """Return y [S, B, N], in the type of x.

    Args:
        numbers: What `numbers_of` returned for S · R networks, R being 1 where all rows share noise, or B.
        noise: Its law.
        sharing: Which of a row's N elements share a draw.
        x: [1 or S, B, N].
        passes: S.
        function: The activation function in front, by the name that `_function_of` has for it.
    """
    held, rows, _ = x.shape
    found = x.new_empty(passes, *x.shape[1:])
    rate, lines = _rate_of(noise), rows * sharing.outer
    units = _units_of(sharing, rate)
    inner = min(triton.next_power_of_2(sharing.inner), _INNER)
    tall = max(1, min(triton.next_power_of_2(lines), _TILE // (units * inner)))
    deep = max(1, min(triton.next_power_of_2(passes), _TILE // (units * inner * tall)))
    tiles = triton.cdiv(lines, tall) * triton.cdiv(sharing.units, units) * triton.cdiv(sharing.inner, inner)
    parts = min(triton.cdiv(passes, deep), max(1, _PROGRAMS // tiles))
    together = triton.cdiv(triton.cdiv(passes, parts), deep) * deep
    sizes = (lines, passes, together, sharing.outer, sharing.units, sharing.inner)
    with torch.cuda.device_of(x):
        _activated[tiles, triton.cdiv(passes, together)](
            *(found, numbers.contiguous(), x.contiguous(), *sizes, noise.a, noise.b, noise.c),
            **rate.arguments(numbers, sharing.units),
            LAW=str(noise.law),
            FUNCTION=function,
            APART=held > 1,
            OWN=len(numbers) > passes,
            PASSES=deep,
            LINES=tall,
            UNITS=units,
            INNER=inner,
        )
    return found


@triton.jit
def _sigmoid(x):
    """Return 1 / (1 + e⁻ˣ), by the one of eˣ and e⁻ˣ that is never too large."""
    power = tl.exp(-tl.abs(x))
    return tl.where(x < 0, power, 1.0) / (1 + power)


@triton.jit
def _tanh(x):
    """Return tanh x, by its series where 2 sigm(2 x) - 1 would lose digits."""
    square = x * x
    near = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
    return tl.where(square < 0.01, near, 2 * _sigmoid(2 * x) - 1)


@triton.jit
def _function_of(x, FUNCTION: tl.constexpr):
    """Return f(x)."""
    if FUNCTION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif FUNCTION == "sigmoid":
        x = _sigmoid(x)
    elif FUNCTION == "silu":
        x = x * _sigmoid(x)
    elif FUNCTION == "tanh":
        x = _tanh(x)
    elif FUNCTION == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif FUNCTION == "gelu_tanh":
        x = 0.5 * x * (1 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        tl.static_assert(FUNCTION == "")
    return x


@triton.jit
def _drawn(noise, network, stride, blocks, tile, unit, INNER: tl.constexpr, WIDTH: tl.constexpr):
    """Return the numbers of a tile's units [L, UNITS] for networks [L]; whole blocks where it can."""
    stream = stream_of(noise, network[:, None], stride, blocks)
    if INNER == 1:
        whole: tl.constexpr = unit.shape[0] * WIDTH // 256
        words = in_order(*block(stream, (tile * whole + tl.arange(0, whole))[None, :], 0))
        drawn = parts_of(words, WIDTH).reshape([network.shape[0], unit.shape[0]])
    else:
        drawn = number_at(stream, unit[None, :], 0, WIDTH)
    return drawn


@triton.jit
def _acting(x, numbers, keep, a, b, c, LAW: tl.constexpr):
    """Return what noise makes of x."""
    if LAW == "kept":
        y = tl.where(keep, x * a + b, c)
    elif LAW == "normal":
        y = x * (1 + a * normal(numbers))
    elif LAW == "uniform":
        y = x * (1 + a * level_of(numbers))
    else:
        up, down = numbers.to(tl.uint32), (numbers ^ 0xFFFFFFFF).to(tl.uint32)
        logit = tl.log(up.to(tl.float32) + 0.5) - tl.log(down.to(tl.float32) + 0.5)
        y = x * (a * _sigmoid(-c * (b + logit)))
    return y


@triton.jit(do_not_specialize=VARYING)
def _activated(
    found, noise, x, lines, passes, together, outer, units, inner, a, b, c,
    stride, blocks, settling, first, rest,
    WIDTH: tl.constexpr, SETTLE: tl.constexpr, LAW: tl.constexpr, FUNCTION: tl.constexpr, APART: tl.constexpr,
    OWN: tl.constexpr, PASSES: tl.constexpr, LINES: tl.constexpr, UNITS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    drawing: tl.constexpr = LINES if OWN else 1  # lines with noise of their own
    deep, wide = tl.cdiv(inner, INNER), tl.cdiv(units, UNITS)
    which = tl.program_id(0)
    within = (which % deep) * INNER + tl.arange(0, INNER)
    tile = (which // deep) % wide
    line, unit = (which // deep // wide) * LINES + tl.arange(0, LINES), tile * UNITS + tl.arange(0, UNITS)
    is_unit = (unit < units)[None, :]
    is_here = ((line < lines)[:, None] & is_unit)[None, :, :, None] & (within < inner)[None, None, None, :]
    place = (line.to(tl.int64)[:, None] * units + unit[None, :])[None, :, :, None] * inner + within[None, None, None, :]
    size = lines.to(tl.int64) * units * inner
    row = tl.minimum(line, lines - 1) // outer if OWN else tl.arange(0, 1)
    rows = lines // outer if OWN else 1
    begin = tl.program_id(1) * together
    value = tl.load(x + place, mask=is_here, other=0.0)
    for start in range(begin, tl.minimum(begin + together, passes), PASSES):
        number = start + tl.arange(0, PASSES)
        at = number.to(tl.int64)[:, None, None, None] * size + place
        is_own = is_here & (number < passes)[:, None, None, None]
        given = tl.load(x + at, mask=is_own, other=0.0) if APART else value
        network = (tl.minimum(number, passes - 1)[:, None] * rows + row[None, :]).reshape([PASSES * drawing])
        numbers = _drawn(noise, network, stride, blocks, tile, unit, INNER, WIDTH)
        keep = numbers < first if WIDTH == 8 else numbers != 0
        if SETTLE:
            rank = rank_at(noise, network, stride, tile, network >= 0)
            keep, rank = settle(noise, network, stride, settling, numbers, is_unit, rank, first, rest)
        own = _function_of(given.to(tl.float32), FUNCTION)
        numbers, keep = numbers.reshape([PASSES, drawing, UNITS, 1]), keep.reshape([PASSES, drawing, UNITS, 1])
        y = _acting(own, numbers, keep, a, b, c, LAW)
        tl.store(found + at, y.to(x.dtype.element_ty), mask=is_own)
