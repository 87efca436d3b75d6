"""Every kernel compiles for a GPU, which takes none; the interpreter lets pass what the compiler refuses."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from service.graph.kernels import activated, grouped, masked, sampled, streams, ties

TYPES = {
    "found": "*fp32", "x": "*fp32", "parameters": "*fp32", "numbers": "*i64", "noise": "*i64", "scale": "fp32",
    "ratio": "fp32", "rest": "i64", "a": "fp32", "b": "fp32", "c": "fp32",
}


def check(kernel, constants, **types):
    names = {each: TYPES.get(each, "i32") for each in kernel.arg_names} | types
    source = ASTSource(kernel, names | dict.fromkeys(constants, "constexpr"), constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"] and made.metadata.shared <= 96 << 10, made.metadata.shared


def check_streams():
    check(streams._words, {"BLOCKS": 64}, found="*i64")
    check(streams._normals, {"BLOCKS": 64})
    check(ties._count, {"SEGMENTS": ties._SEGMENTS}, found="*i64")


def check_activated():
    tile = {"PASSES": 8, "LINES": 2, "APART": False, "OWN": True}
    for law, width, settle in (("kept", 1, False), ("kept", 8, True), ("normal", 32, False), ("relaxed", 32, False)):
        drawn = {"LAW": law, "WIDTH": width, "SETTLE": settle}
        check(activated._activated, tile | drawn | {"FUNCTION": "gelu", "UNITS": 256, "INNER": 1}, found="*fp32")
        check(activated._activated, tile | drawn | {"FUNCTION": "tanh", "UNITS": 16, "INNER": 16}, found="*fp32")


def check_grouped():
    for operand in ("*fp32", "*bf16"):
        types = {"noise": "*fp32", "x": "*fp32"} | dict.fromkeys(("found", "weight", "bias"), operand)
        lists = dict.fromkeys(("inputs", "input_counts", "outputs", "output_counts"), "*i64")
        tile = {"ROWS": grouped._MOST_ROWS, "OUT": grouped._OUT, "STEP": grouped._STEP, "WIDEN": False}
        check(grouped._grouped, tile | {"APART": True, "BIAS": True, "PART": True}, **types, **lists)


def check_products():
    for operand in ("*fp32", "*bf16"):
        types = {"x": operand, "parameters": operand}
        for width, settle in ((1, False), (8, False), (8, True)):
            shared = {"WIDTH": width, "SETTLE": settle, "GROUPS": 1 if width == 1 else 2, "BIAS": True, "WIDEN": False}
            tile = {"STEP": masked._STEP, "ROWS": masked._MOST_ROWS, "OUT": masked._OUT}
            check(masked._by_matrices, shared | tile, **types)
            tile = {"NETWORKS": masked._NETWORKS, "OUT": masked._FEW_OUT}
            check(masked._by_vectors, shared | tile, **types)
        tile = {"ROWS": sampled._TILE, "OUT": sampled._TILE, "STEP": sampled._STEP, "PASSES": sampled._PASSES}
        for shared in (True, False):
            check(sampled._sampled, tile | {"BIAS": True, "SHARED": shared, "WIDEN": False}, **types)
"""


SLOW = [pytest.param(each, marks=pytest.mark.slow) for each in ("check_products", "check_activated", "check_grouped")]


@pytest.mark.parametrize("which", ["check_streams", *SLOW])
def test_kernels_compile_and_fit_a_gpu(which: str, tmp_path: object) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", f"{COMPILE}\n{which}()"], env=environment, capture_output=True, text=True
    )

    assert ran.returncode == 0, ran.stderr
