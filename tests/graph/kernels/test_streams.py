"""Numbers made in kernels are those of `dropout/noise.py`: the same bits, normals to 1e-6."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.dropout.noise import Stream, _run, philox_key

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

import triton
from triton import language as tl

from service.graph.kernels import streams
from service.graph.kernels.numbers import normal

SCOPES = [None, range(3), range(5, 8), (9, 0, 4), range(2**62 - 2, 2**62)]
SEEDS = st.integers(0, 2**70)


def numbers(stream: Stream) -> torch.Tensor:
    return stream.coordinates().flatten(0, 1)


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.integers(0, 9999), st.integers(0, 2**62), st.integers(1, 150), st.integers(0, 3))
def test_words_are_the_generators_own(seed: int, first: int, row: int, blocks: int, lane: int) -> None:
    """Also where a row's counter passes from one 64-bit word to the next."""
    key = philox_key("", seed, "layer.weight")
    of_pass = numbers(Stream(seed, "layer.weight", first, 1))
    of_row = numbers(Stream(seed, "layer.weight", first, 1, [row]))
    found = streams.words(torch.cat([of_pass, of_row]), blocks, lane).numpy()

    assert (found[0] == _run(key, first * blocks, 0, lane, blocks).view(np.int64)).all()
    assert (found[1] == _run(key, row * blocks, first + 1, lane, blocks).view(np.int64)).all()


@pytest.mark.parametrize("rows", SCOPES)
@pytest.mark.parametrize("count", [1, 7, 900])
def test_normals_are_the_streams_own_to_a_millionth(rows: range | None, count: int) -> None:
    stream = Stream(3, "layer.weight", 11, 2, rows)
    found = streams.normals(numbers(stream), count).view(2, -1, count)

    torch.testing.assert_close(found, stream.normal((count,)), rtol=0, atol=1e-6)


def test_normals_are_exact_to_a_millionth_out_to_the_last() -> None:
    near = (2.0**31 * torch.logspace(-7.2, -0.1, 2000, dtype=torch.float64)).long()
    words = torch.cat([torch.tensor([0, 1 << 31]), near, 2**32 - 1 - near])
    level = ((words - 2**31).float() + 0.5) * 2.0**-31
    found = torch.empty(len(words))
    _normals_of[(1,)](found, words, len(words), 4096)

    expected = level.clamp(-1 + 2.0**-24, 1 - 2.0**-24).double().erfinv() * 2**0.5
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@triton.jit
def _normals_of(found, words, count, SIZE: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803 # a kernel
    place = tl.arange(0, SIZE)
    tl.store(found + place, normal(tl.load(words + place, mask=place < count, other=0)), mask=place < count)
