"""Kernels against a careful reference in float64: exact masks and sampled inference, on shapes of all kinds."""

from dataclasses import dataclass
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.dropout import DropConnect, DropConnectSampled, Stream

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

from service.graph.kernels.masked import masked_product
from service.graph.kernels.sampled import sampled_product
from service.graph.kernels.ties import counted

ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SIZES = st.sampled_from([1, 2, 7, 31, 32, 33, 64, 65, 100])
WIDTHS = st.one_of(SIZES, st.sampled_from([255, 256, 257, 300]))


@dataclass(frozen=True)
class Case:
    """A layer, its inputs and the networks that it is asked for."""

    passes: int
    rows: range | None
    batch: int
    apart: bool
    inside: int
    outside: int
    bias: bool
    dtype: torch.dtype

    def stream(self) -> Stream:
        return Stream(7, "layer.weight", 3, self.passes, self.rows)

    @property
    def own_rows(self) -> int:
        return self.batch if self.rows is None else len(self.rows)

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Return x [S or 1, B, in] and [W b] [out, in + 1]."""
        generator = torch.Generator().manual_seed(self.inside)
        x = torch.randn(self.passes if self.apart else 1, self.own_rows, self.inside, generator=generator)
        weight = torch.randn(self.outside, self.inside + self.bias, generator=generator)
        return x.to(self.dtype), weight.to(self.dtype)

    def close(self, found: Tensor, expected: Tensor) -> bool:
        return (found.double() - expected).norm().item() <= ERRORS[self.dtype] * expected.norm().item()


CASES = st.builds(
    Case,
    passes=st.integers(1, 4),
    rows=st.sampled_from([None, None, range(1), range(4, 9)]),
    batch=st.sampled_from([1, 2, 17, 70]),
    apart=st.booleans(),
    inside=WIDTHS,
    outside=SIZES,
    bias=st.booleans(),
    dtype=st.sampled_from(list(ERRORS)),
)


@settings(max_examples=9, deadline=None)
@given(CASES, st.sampled_from([0.5, 0.5, 0.25, 0.75, 0.7]))
def test_exact_masks_are_the_reference_with_the_variants_own_masks(case: Case, q: float) -> None:
    x, weight = case.numbers()
    shape = tuple(weight.shape)
    masks = DropConnect(1 - q).draw(case.stream(), shape).double()
    ones = torch.ones(*x.shape[:2], int(case.bias), dtype=torch.float64)
    inputs = torch.cat([x.double(), ones], 2).expand(case.passes, -1, -1)
    networks = (masks * weight.double()).expand(-1, case.own_rows, -1, -1)
    expected = torch.einsum("sboi,sbi->sbo", networks, inputs)

    apart = x.flatten(0, 1)[:, None] if case.rows is not None else x
    noise = counted(case.stream().coordinates().flatten(0, 1), q, prod(shape), shape[1])
    found = masked_product(noise, q, apart, weight, case.inside if case.bias else None)

    assert case.close(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("rows", [None, (9, 2**62)])
@pytest.mark.parametrize(("q", "shape"), [(0.7, (17, 65)), (0.999, (40, 102)), (0.5, (5, 300))])
@pytest.mark.parametrize("apart", [True, False])
def test_masks_are_the_variants_own_to_the_bit(
    q: float, shape: tuple[int, int], rows: range | None, apart: bool
) -> None:
    """Each input asks for one column of the masks; one row of inputs and several take ways of their own."""
    stream, columns = Stream(5, "layer.weight", 2, 2, rows), shape[1]
    noise = counted(stream.coordinates().flatten(0, 1), q, prod(shape), columns)
    asked = [columns - 2] if apart else range(columns - 1)
    x = torch.eye(columns - 1)[asked]
    weight = torch.ones(shape)
    found = [masked_product(noise, q, each, weight, None) for each in (x[:, None, None] if apart else x[None, None])]
    bias = masked_product(noise, q, torch.zeros(1, 1 if apart else 2, columns - 1), weight, columns - 1)[:, :1]
    made = torch.cat([*found, bias], 1).transpose(1, 2) > 0

    masks = DropConnect(1 - q).draw(stream, shape).flatten(0, 1)[..., [*asked, columns - 1]] > 0
    assert torch.equal(made, masks)


@settings(max_examples=12, deadline=None)
@given(CASES, st.sampled_from([0.5, 0.1]))
def test_sampled_inference_is_the_reference_with_the_variants_own_normals(case: Case, p: float) -> None:
    x, weight = case.numbers()
    layer = weight[:, : case.inside].double(), weight[:, case.inside].double() if case.bias else None
    variant = DropConnectSampled(p)
    mean, variance = variant.moments(x.double(), *layer)
    expected = mean + variance.sqrt() * variant.draw(case.stream(), tuple(weight.shape)).double()

    numbers = case.stream().coordinates().flatten(0, 1)
    bias = case.inside if case.bias else None
    found = sampled_product(numbers, p, x.flatten(0, 1), weight, bias, case.own_rows, case.passes)

    assert case.close(found, expected)


@pytest.mark.parametrize("passes", [7, 8, 9, 40])
def test_passes_are_all_written_however_they_are_parted(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(passes, None, 3, False, 5, 40, True, torch.float32)
    x, weight = case.numbers()
    given = case.stream().coordinates().flatten(0, 1), 0.5, x[0], weight, 5, 3, passes
    whole = sampled_product(*given)
    monkeypatch.setattr("service.graph.kernels.sampled._PROGRAMS", 2)

    assert torch.equal(sampled_product(*given), whole)
    assert torch.isfinite(whole).all()
