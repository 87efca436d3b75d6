"""u = W (n ∘ x) + b for many passes in one launch, of each only the inputs and outputs that it keeps.

It does not know sites, or whether it pays. What a pass keeps is listed on the device, so nothing waits for it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.graph.kernels.tiles import VARYING, interpreted, multiply

_OUT, _STEP = 64, 32  # outputs of a program, and inputs at a time
_FEW_ROWS, _MOST_ROWS = 16, 64


@dataclass(frozen=True)
class Listed:
    """What each pass keeps of some units: their places in front [S, U], and how many they are [S]."""

    places: Tensor
    counts: Tensor

    @staticmethod
    def of(noise: Tensor) -> "Listed":
        """List where noise [S, U] is not 0."""
        return Listed((noise == 0).to(torch.uint8).argsort(dim=1, stable=True), (noise != 0).sum(1))


def grouped_product(
    noise: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, following: Tensor | None = None
) -> Tensor:
    """Return u [S, B, out], in the type of the weight, which n ∘ x is rounded to; 0 at outputs that what follows drops.

    Args:
        noise: [S, in], 0 where a pass drops an input of all rows.
        x: [1 or S, B, in].
        weight: [out, in].
        bias: [out].
        following: [S, out], 0 where a pass drops an output.
    """
    (passes, inner), (held, rows, _), outside = noise.shape, x.shape, len(weight)
    found = (weight.new_empty if following is None else weight.new_zeros)(passes, rows, outside)
    inputs = Listed.of(noise)
    outputs = inputs if following is None else Listed.of(following)
    tall = _FEW_ROWS if rows <= _FEW_ROWS else _MOST_ROWS
    grid = triton.cdiv(outside, _OUT), triton.cdiv(rows, tall), passes
    lists = (inputs.places, inputs.counts, outputs.places, outputs.counts)
    given = (found, noise.contiguous(), x.contiguous(), weight.contiguous(), weight if bias is None else bias, *lists)
    with torch.cuda.device_of(x):
        _grouped[grid](
            *given, rows, inner, outside, held > 1, bias is not None, following is not None, interpreted(),
            tall, _OUT, _STEP,
        )  # fmt: skip
    return found


@triton.jit(do_not_specialize=VARYING)
def _grouped(
    found, noise, x, weight, bias, inputs, input_counts, outputs, output_counts, rows, inner, outside,
    APART: tl.constexpr, BIAS: tl.constexpr, PART: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, OUT: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    network = tl.program_id(2).to(tl.int64)
    out, row = tl.program_id(0) * OUT + tl.arange(0, OUT), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    most = tl.load(output_counts + network).to(tl.int32) if PART else outside
    if tl.program_id(0) * OUT < most:
        is_out, is_row = out < most, row < rows
        if PART:
            out = tl.load(outputs + network * outside + out, mask=is_out, other=0).to(tl.int32)
        count = tl.load(input_counts + network).to(tl.int32)
        own_x = x + network * rows * inner if APART else x
        at_x, at_weight = own_x + row.to(tl.int64)[:, None] * inner, weight + out.to(tl.int64)[None, :] * inner
        total = tl.zeros([ROWS, OUT], tl.float32)
        for start in range(0, count, STEP):
            place = start + tl.arange(0, STEP)
            column = tl.load(inputs + network * inner + place, mask=place < count, other=0)
            scale = tl.load(noise + network * inner + column, mask=place < count, other=0.0).to(tl.float32)
            own = tl.load(at_x + column[None, :], mask=is_row[:, None] & (place < count)[None, :], other=0.0)
            scaled = (own.to(tl.float32) * scale[None, :]).to(weight.dtype.element_ty)
            kept = tl.load(at_weight + column[:, None], mask=(place < count)[:, None] & is_out[None, :], other=0.0)
            total = multiply(scaled, kept, total, WIDEN)
        if BIAS:
            total += tl.load(bias + out, mask=is_out, other=0.0).to(tl.float32)[None, :]
        at = found + (network * rows + row[:, None]) * outside + out[None, :]
        tl.store(at, total.to(found.dtype.element_ty), mask=is_row[:, None] & is_out[None, :])
