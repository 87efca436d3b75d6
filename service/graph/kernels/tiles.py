"""The product of two tiles in a kernel, and whether kernels run in Triton's interpreter."""

import triton
import triton.language as tl

VARYING = (
    *("networks", "inputs", "rows", "held", "own", "together", "blocks", "count", "lane"),
    *("bias", "end", "lines", "passes", "stride", "settling", "segments", "length", "first", "rest"),
)
"""What differs between calls or models, for which a kernel is not compiled anew."""


def interpreted() -> bool:
    """Tell whether kernels run in the interpreter, which multiplies the bits of bfloat16 as if they were integers."""
    return bool(triton.knobs.runtime.interpret)


@triton.jit
def multiply(a, b, total, WIDEN: tl.constexpr):
    """Return total + a b, summed in float32; operands are widened where nothing else multiplies them right.

    A product of float32 is three of TF32, of the numbers and of what TF32 leaves of them: tensor cores do it.
    """
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32x3")
