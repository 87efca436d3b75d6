"""One layer of an LSTM or a GRU, step by step, with noise within its steps; it does not know graphs or passes.

Rows come before steps: x [*, B, steps, inputs], states [*, B, directions, units], noise
[*, R, steps or 1, directions, columns], R being 1 or B. Weights are torch's, direction by direction: an LSTM's gates
are i, f, g, o and a GRU's r, z, n.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from service.dropout.noise import Shape
from service.dropout.variant import CellVariant, Place

LSTM_GATES, GRU_GATES = 4, 3
States = tuple[Tensor, ...]  # h, and an LSTM's c
Affine = tuple[Tensor, Tensor | None]  # a weight [gates · units, *] and its bias
Masks = dict[Place, Tensor]


@dataclass(frozen=True)
class CellLayer:
    """A layer apart from its weights.

    Attributes:
        variant: What acts in it, where there is noise.
        gates: 4 in an LSTM, 3 in a GRU.
        inputs: Size of x_t.
        units: Size of h_t.
        directions: 1 or 2.
    """

    variant: CellVariant
    gates: int
    inputs: int
    units: int
    directions: int

    def shape(self, steps: int) -> Shape:
        """Return what the variant takes for the site's shape."""
        return (steps, self.directions, self.gates, self.inputs, self.units)

    def expected_noise(self, like: Tensor) -> Tensor | None:
        """Return the noise of the eval network [1, 1, directions, columns]; None where that is the plain layer."""
        if self.variant.plain_in_eval:
            return None
        values = zip(self.variant.places, self._widths(), strict=True)
        columns = [like.new_full((width,), self.variant.expected(place)) for place, width in values]
        return torch.cat(columns).expand(1, 1, self.directions, -1)

    def project(self, noise: Tensor | None, x: Tensor, weight: Affine, direction: int) -> Tensor:
        """Return the inputs' share of a direction's gates, of all steps at once [*, B, steps, gates · units]."""
        return self._product(Place.INPUT, x, self._masks(noise)[direction], *weight)

    def run(
        self, noise: Tensor | None, gates: Sequence[Tensor], states: States, weights: Sequence[Affine],
        lengths: Tensor | None,
    ) -> States:  # fmt: skip
        """Run the steps.

        Args:
            noise: The noise, or None for the plain layer.
            gates: What `project` returned for each direction.
            states: The initial states.
            weights: The recurrent weights and biases, one pair for each direction.
            lengths: How many steps each row has [*, B]; what is beyond changes no state, and gives zeros.

        Returns:
            The outputs [*, B, steps, directions · units] and the final states.
        """
        masks, outputs, finals = self._masks(noise), [], []
        for index in range(self.directions):
            own = tuple(state.select(-2, index) for state in states)
            shares = gates[index].unbind(-2)
            inside = None if lengths is None else [(step < lengths).unsqueeze(-1) for step in range(len(shares))]
            given, final = self._direction(masks[index], shares, own, weights[index], inside, backward=index == 1)
            outputs.append(given)
            finals.append(final)
        steps = outputs[0] if len(outputs) == 1 else [torch.cat(each, -1) for each in zip(*outputs, strict=True)]
        return torch.stack(steps, -2), *(torch.stack(each, -2) for each in zip(*finals, strict=True))

    def _direction(
        self, masks: Masks, shares: Sequence[Tensor], states: States, weight: Affine, inside: list[Tensor] | None,
        *, backward: bool,
    ) -> tuple[list[Tensor], States]:  # fmt: skip
        outputs = list(shares)
        each = {place: mask.unbind(-2) for place, mask in masks.items() if place is not Place.INPUT}
        for step in reversed(range(len(shares))) if backward else range(len(shares)):
            noise: Masks = {place: steps[step if len(steps) > 1 else 0] for place, steps in each.items()}
            new = self._step(noise, shares[step], states, weight)
            if inside is not None:
                new = tuple(torch.where(inside[step], a, b) for a, b in zip(new, states, strict=True))
            outputs[step] = new[0] if inside is None else new[0] * inside[step]
            states = new
        return outputs, states

    def _step(self, noise: Masks, share: Tensor, states: States, weight: Affine) -> States:
        recurrent = self._product(Place.STATE, states[0], noise, *weight)
        step = self._gru_step if self.gates == GRU_GATES else self._lstm_step
        return step(noise, share, recurrent, states)

    def _lstm_step(self, noise: Masks, share: Tensor, recurrent: Tensor, states: States) -> States:
        h, c = states
        i, f, g, o = (share + recurrent).chunk(LSTM_GATES, -1)
        g = g.tanh()
        new = f.sigmoid() * c + i.sigmoid() * self._act(Place.CANDIDATE, noise, g, g)
        new = self._act(Place.CELL, noise, new, c)
        given = o.sigmoid() * new.tanh()
        return self._act(Place.OUTPUT, noise, given, h), self._act(Place.MEMORY, noise, new, c)

    def _gru_step(self, noise: Masks, share: Tensor, recurrent: Tensor, states: States) -> States:
        (h,) = states
        (r, z, n), (r_h, z_h, n_h) = share.chunk(GRU_GATES, -1), recurrent.chunk(GRU_GATES, -1)
        n = (n + (r + r_h).sigmoid() * n_h).tanh()
        z = (z + z_h).sigmoid()
        new = (1 - z) * self._act(Place.CANDIDATE, noise, n, n) + z * h
        return (self._act(Place.MEMORY, noise, new, h),)

    def _act(self, place: Place, noise: Masks, new: Tensor, old: Tensor) -> Tensor:
        return self.variant.apply(new, old, noise[place].to(new.dtype)) if place in noise else new

    def _product(self, place: Place, value: Tensor, noise: Masks, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W (z ∘ value) + b; where each gate has a mask, its own rows of W take what that leaves."""
        width = value.shape[-1]
        if place not in noise or noise[place].shape[-1] == width:
            return F.linear(self._act(place, noise, value, value), weight, bias)
        apart, own = value.unsqueeze(-2), {place: torch.unflatten(noise[place], -1, (self.gates, width))}
        masked = self._act(place, own, apart, apart)
        u = torch.einsum("...gi,gui->...gu", masked, torch.unflatten(weight, 0, (self.gates, -1))).flatten(-2)
        return u if bias is None else u + bias

    def _masks(self, noise: Tensor | None) -> list[Masks]:
        """Return each direction's noise by place [*, R, steps or 1, columns]."""
        if noise is None:
            return [{}] * self.directions
        parts = torch.split(noise, list(self._widths()), -1)
        return [
            {place: part.select(-2, index) for place, part in zip(self.variant.places, parts, strict=True)}
            for index in range(self.directions)
        ]

    def _widths(self) -> tuple[int, ...]:
        return self.variant.widths(self.shape(1))


def affines(parameters: Sequence[Tensor], directions: int) -> tuple[list[Affine], list[Affine]]:
    """Return inputs' and recurrent weights with their biases, direction by direction, from torch's flat list."""
    each = len(parameters) // directions
    firsts, biased = range(0, len(parameters), each), each > 2
    inputs = [(parameters[first], parameters[first + 2] if biased else None) for first in firsts]
    recurrent = [(parameters[first + 1], parameters[first + 3] if biased else None) for first in firsts]
    return inputs, recurrent


def run_layer(
    layer: CellLayer, noise: Tensor | None, x: Tensor, states: States, parameters: Sequence[Tensor],
    lengths: Tensor | None, batch_first: bool,
) -> States:  # fmt: skip
    """Run a layer in torch's own layout: x [B, steps, inputs] or [steps, B, inputs], states [directions, B, units]."""
    inputs, recurrent = affines(parameters, layer.directions)
    x = x if batch_first else x.transpose(0, 1)
    gates = [layer.project(noise, x, weight, direction) for direction, weight in enumerate(inputs)]
    y, *finals = layer.run(noise, gates, tuple(each.transpose(0, 1) for each in states), recurrent, lengths)
    return (y if batch_first else y.transpose(0, 1)), *(each.transpose(0, 1) for each in finals)
