"""The kernels on the layer of Wan et al. 2013, Table 1: time, error, and the floor that each stands on.

The floor of exact masks is the plain product and reading a bit for each mask, the paper's own lower bound; that of
sampled inference is writing every pass, or both moments' operations; that of noise after an activation function is
writing every pass; that of a grouped product the operations on what is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from devices import Machine, device_s
from torch import Tensor
from torch.nn import functional as F

from service.dropout import Bernoulli, DropConnect, DropConnectSampled, Stream
from service.dropout.variant import ActivationVariant
from service.graph.kernels.counted_sites import CountedApply, CountedNoise
from service.graph.kernels.grouped import grouped_product
from service.graph.kernels.masked import masked_product
from service.graph.kernels.sampled import sampled_product
from service.graph.kernels.ties import counted
from service.graph.shapes import BatchAxis

_CHECKED = 4  # rows whose masks of their own are compared
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Measured:
    """One kernel.

    Attributes:
        name: What was asked of it.
        seconds: What a call took.
        product_s: The plain product of the same layer and rows, once.
        floor_s: The least that it could take.
        error: Its relative error by norm, against float64 with the CPU's own masks or normals.
    """

    name: str
    seconds: float
    product_s: float
    floor_s: float
    error: float


class Layer:
    """The layer, 1024 to 1024 with a bias, a mini-batch of 128, and Z = 1000 samples.

    Args:
        machine: Where it runs.
        small: Whether all is as small as the interpreter needs.
    """

    def __init__(self, machine: Machine, small: bool) -> None:
        self.machine, device = machine, machine.device
        self.inside, outside, self.rows, self.passes = (40, 24, 5, 20) if small else (1024, 1024, 128, 1000)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(self.rows, self.inside, generator=generator).to(device)
        self.parameters = torch.randn(outside, self.inside + 1, generator=generator).to(device)
        weight, bias = self.parameters[:, :-1].contiguous(), self.parameters[:, -1].contiguous()
        self.product_s = device_s(lambda: F.linear(self.x, weight, bias), device)

    def exact(self, p: float, own: bool) -> Measured:
        """Measure one pass under exact masks: every row's own, or one for all."""
        numbers = self._numbers(1, range(self.rows) if own else None)
        count, width = self.parameters.numel(), self.parameters.shape[1]
        inputs = self.x[:, None] if own else self.x[None]
        masks_s = len(numbers) * count / 8 / self.machine.bandwidth
        return self._measured(
            f"exact masks, p = {p}, {'one for each row' if own else 'one for all rows'}",
            lambda: masked_product(counted(numbers, 1 - p, count, width), 1 - p, inputs, self.parameters, self.inside),
            self.product_s + masks_s,
            lambda found: (found.reshape(self.rows, -1), self._exactly(p, own)),
        )

    def sampled(self, p: float) -> Measured:
        """Measure all passes of sampled inference."""
        numbers = self._numbers(self.passes, None)
        written = self.passes * self.rows * len(self.parameters) * _FLOAT_BYTES
        operations = 4 * self.rows * self.parameters.numel()
        return self._measured(
            f"sampled inference, p = {p}, Z = {self.passes}",
            lambda: sampled_product(numbers, p, self.x, self.parameters, self.inside, self.rows, self.passes),
            self.machine.floor_s(written, operations),
            lambda found: (found, self._sampled(p)),
        )

    def activated(self, variant: ActivationVariant, function: str, own: bool) -> Measured:
        """Measure all passes of a site on the layer's inputs, after an activation function."""
        shape, rows = (self.inside,), range(self.rows) if own else None
        drawn = CountedNoise(of=variant)
        noise = drawn.draw(self._stream(self.passes, rows), shape)
        after = CountedApply(variant, BatchAxis(0), drawn, function)
        checked = min(_CHECKED, self.passes)
        before = after.entering(self.x.cpu().double())
        expected = variant.apply(before, variant.draw(Stream(0, "layer.weight", 0, checked, rows), shape).double())
        return self._measured(
            f"{variant.name} after {function}, p = {variant.p}, {'each row its own' if own else 'one for all rows'}",
            lambda: after(self.passes * self.rows, noise, self.x).unflatten(0, (self.passes, -1)),
            self.machine.floor_s((self.passes + 1) * self.x.nbytes, 0),
            lambda found: (found, expected),
        )

    def grouped(self, p: float) -> Measured:
        """Measure all passes of a product of what each keeps of its inputs and its outputs."""
        variant, weight = Bernoulli(p), self.parameters[:, :-1].contiguous()
        bias = self.parameters[:, -1].contiguous()
        noise, after = (
            variant.draw(Stream(0, name, 0, self.passes), (units,))[:, 0].to(self.machine.device)
            for name, units in (("before", self.inside), ("after", len(weight)))
        )
        checked = slice(0, min(_CHECKED, self.passes))
        inputs = noise[checked, None].cpu().double() * self.x.cpu().double()
        whole = F.linear(inputs, weight.cpu().double(), bias.cpu().double())
        kept = 2 * self.rows * ((noise != 0).sum(1) * (after != 0).sum(1)).sum().item()
        return self._measured(
            f"grouped product, p = {p}, Z = {self.passes}",
            lambda: grouped_product(noise, self.x[None], weight, bias, after),
            self.machine.floor_s(self.passes * self.rows * len(weight) * _FLOAT_BYTES, kept),
            lambda found: (found, whole * (after[checked, None].cpu() != 0)),
        )

    def _measured(
        self, name: str, run: Callable[[], Tensor], floor_s: float, pair: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> Measured:
        found, expected = pair(run().cpu().double())
        found = found[: len(expected)]
        error = ((found - expected).norm() / expected.norm()).item()
        return Measured(name, device_s(run, self.machine.device), self.product_s, floor_s, error)

    def _stream(self, passes: int, rows: range | None) -> Stream:
        return Stream(0, "layer.weight", 0, passes, rows, device=self.machine.device)

    def _numbers(self, passes: int, rows: range | None) -> Tensor:
        return self._stream(passes, rows).coordinates().flatten(0, 1)

    def _exactly(self, p: float, own: bool) -> Tensor:
        """Return u [rows, out] of the first rows, from masks as the CPU draws them."""
        rows = min(_CHECKED, self.rows)
        masks = DropConnect(p).draw(Stream(0, "layer.weight", 0, 1, range(rows) if own else None), self._shape())[0]
        x = F.pad(self.x[:rows].cpu().double(), (0, 1), value=1.0)
        return ((masks.double() * self.parameters.cpu().double()) @ x[..., None])[..., 0]

    def _sampled(self, p: float) -> Tensor:
        """Return u [S, B, out] of the first passes, from normals as the CPU draws them."""
        variant, parameters = DropConnectSampled(p), self.parameters.cpu().double()
        z = variant.draw(Stream(0, "layer.weight", 0, min(_CHECKED, self.passes)), self._shape()).double()
        return variant.apply(*variant.moments(self.x.cpu().double(), parameters[:, :-1], parameters[:, -1]), z)

    def _shape(self) -> tuple[int, int]:
        outside, columns = self.parameters.shape
        return outside, columns
