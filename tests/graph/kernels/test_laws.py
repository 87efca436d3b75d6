"""The laws of the catalogue, through the kernels: what they make of the bench's inputs has its closed forms."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from bench import BIAS, FEATURES, IN, WEIGHT, act
from laws import (
    a_linear_layer_after_it_covaries,
    noise_is_shared_as_declared,
    passes_are_independent,
    rows_are_independent_in_scope_row,
    rows_share_one_network_in_scope_pass,
    the_mean_is_its_closed_form,
    the_variance_is_its_closed_form,
)
from torch import Tensor

from service.graph.kernels.counted import CountedDropConnect, CountedSampled

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

from service.graph.kernels.masked import masked_product
from service.graph.kernels.sampled import sampled_product

PARAMETERS = torch.cat([WEIGHT, BIAS[:, None]], 1)
LAWS = (
    the_mean_is_its_closed_form,
    the_variance_is_its_closed_form,
    noise_is_shared_as_declared,
    a_linear_layer_after_it_covaries,
    rows_share_one_network_in_scope_pass,
    rows_are_independent_in_scope_row,
    passes_are_independent,
)


@act.register
def _(variant: CountedDropConnect, noise: Tensor) -> Tensor:
    """Give every row the networks of a pass, or its own, one row at a time: so many networks go through together."""
    networks = noise.expand(-1, len(FEATURES), -1)
    return torch.stack([exact(variant.q, networks[:, row], row) for row in range(len(FEATURES))], 1)


@act.register
def _(variant: CountedSampled, noise: Tensor) -> Tensor:
    return once(sampled_product, noise.flatten(0, 1), variant.p, FEATURES, PARAMETERS, IN, len(FEATURES), len(noise))


def exact(q: float, networks: Tensor, row: int) -> Tensor:
    return once(masked_product, networks.contiguous(), q, FEATURES[row, None, None], PARAMETERS, IN)[:, 0]


def once(kernel: Any, noise: Tensor, *rest: Any) -> Tensor:
    """Return what a kernel makes of noise, kept for the laws that ask for the same."""
    return _made(kernel, noise.numpy().tobytes(), noise.shape, *(_Held(each) for each in rest))


class _Held:
    """An argument that equals another of the same value."""

    def __init__(self, value: Any) -> None:
        self.value, self.key = value, value.numpy().tobytes() if isinstance(value, Tensor) else value

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.key == other.key


@lru_cache(maxsize=16)
def _made(kernel: Any, noise: bytes, shape: torch.Size, *rest: _Held) -> Tensor:
    numbers = torch.frombuffer(bytearray(noise), dtype=torch.int64).view(shape)
    made: Tensor = kernel(numbers, *(each.value for each in rest))
    return made


@pytest.fixture(autouse=True)
def _many_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a program make thousands: the interpreter takes as long for one."""
    monkeypatch.setattr("service.graph.kernels.masked._NETWORKS", 1024)
    monkeypatch.setattr("service.graph.kernels.masked._FEW_OUT", 4)
    monkeypatch.setattr("service.graph.kernels.sampled._PASSES", 1024)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("variant", [CountedDropConnect(p) for p in (0.25, 0.5, 0.3)], ids=lambda each: f"p {each.p}")
def test_exact_masks_keep_the_laws(variant: CountedDropConnect, law: Any) -> None:
    law(variant)


@pytest.mark.parametrize("law", [law for law in LAWS if law is not rows_are_independent_in_scope_row])
def test_sampled_inference_keeps_the_laws(law: Any) -> None:
    law(CountedSampled(0.3))
