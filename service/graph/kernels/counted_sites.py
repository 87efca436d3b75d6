"""Sites on activations whose noise is where its numbers begin, for a kernel that makes it; it does not know how.

Noise is a few words for each pass, and row in row scope. Triton is imported at first use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from service.dropout import Bernoulli, Variant
from service.dropout.noise import Shape, Stream
from service.dropout.variant import ActivationVariant
from service.graph.acting import Apply
from service.graph.kernels import unmade
from service.graph.kernels.laws import ELEMENTWISE, Noise, Sharing, noise_of
from service.graph.nodes import node_operand
from service.graph.shapes import BatchAxis

aten = torch.ops.aten
_FUNCTIONS = {
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.gelu.default: "gelu",
}


@dataclass(frozen=True)
class CountedNoise(Variant):
    """The noise of an element-wise variant, made where it acts.

    Attributes:
        of: The variant.
        channel_axes: How many axes of a row number its channels.
    """

    name = "counted"
    kinds = frozenset()

    of: Variant = field(default_factory=Bernoulli)
    channel_axes: int = 1

    @property
    def noise(self) -> Noise:
        """Return what it does."""
        found = noise_of(self.of)
        assert found is not None
        return found

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw coordinates [S, R, 4] as int64, and behind them counts where ties need it."""
        from service.graph.kernels.activated import numbers_of

        coordinates = stream.coordinates()
        sharing = Sharing.of(self.of, shape, self.channel_axes)
        return torch.unflatten(numbers_of(coordinates.flatten(0, 1), self.noise, sharing), 0, coordinates.shape[:2])


class CountedApply(Apply):
    """Let a variant act, its noise made on the way, after an activation function that it may take in."""

    in_parts = False

    def __init__(
        self, variant: ActivationVariant, batch: BatchAxis | None, drawn: CountedNoise, function: str = ""
    ) -> None:
        super().__init__(variant, batch)
        self.drawn, self.function = drawn, function
        self.__name__ = f"counted_{self.__name__}"

    def after(self, function: str) -> "CountedApply":
        """Return the same, an activation function taken in."""
        assert isinstance(self.variant, ActivationVariant)
        return CountedApply(self.variant, self.batch, self.drawn, function)

    def __call__(self, rows: int, noise: Tensor, *tensors: Tensor) -> Tensor:
        """Act on a tensor of `rows` rows in all, or of a single pass's for all passes; see `Apply`."""
        (x,) = tensors
        fronted = self._rows_in_front(x, rows)
        passes = noise.shape[0] if noise.dim() == 3 else 1
        return self._rows_back(self._made(noise, fronted, rows // passes, self.function).flatten(0, 1))

    def entering(self, x: Tensor) -> Tensor:
        """Return what noise acts on: the activation function's result."""
        return _call(self.function, x)

    def factors(self, noise: Tensor, x: Tensor) -> Tensor:
        """Return the noise that the kernel would make [S, 1, J], all rows sharing it, in the type of x [*, J]."""
        return self._made(noise, x.new_ones(1, x.shape[-1]), 1, "")

    def _made(self, noise: Tensor, x: Tensor, rows: int, function: str) -> Tensor:
        """Return y [S, rows, …] of x [rows or S · rows, …]."""
        from service.graph.kernels.activated import activated

        passes, shape = noise.shape[0] if noise.dim() == 3 else 1, x.shape[1:]
        sharing = Sharing.of(self.drawn.of, tuple(shape), self.drawn.channel_axes)
        each = x.reshape(-1, rows, sharing.outer * sharing.units * sharing.inner)
        found = activated(noise.flatten(0, -2), self.drawn.noise, sharing, each, passes, function)
        return found.reshape(passes, rows, *shape)


def counted_site(variant: Variant, shape: Sequence[object], channel_axes: int) -> CountedNoise | str:
    """Return what draws the counted noise of a site, its row's shape known; why none does where no kernel makes it."""
    if type(variant) not in ELEMENTWISE:
        return unmade(variant.name)
    if noise_of(variant) is None:
        return f"{unmade(variant.name)} with these parameters"
    if not all(getattr(each, "is_Integer", False) for each in shape):
        return "they serve sites of fixed lengths"
    return CountedNoise(of=variant, channel_axes=channel_axes)


def function_of(node: fx.Node) -> str | None:
    """Return the name of the activation function that a node calls, if kernels take it in."""
    name = _FUNCTIONS.get(node.target)  # type: ignore[call-overload] # a target is a name or a function
    if name == "gelu":
        return "gelu" if node.kwargs.get("approximate", "none") == "none" else "gelu_tanh"
    return str(name) if name else None


def _call(function: str, x: Tensor) -> Tensor:
    if function == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    found: Tensor = getattr(torch.nn.functional, function)(x) if function else x
    return found


def take_in_functions(graph: fx.Graph) -> None:
    """Let every counted site take in the activation function before it, where it alone reads that."""
    for node in list(graph.nodes):
        if not isinstance(node.target, CountedApply):
            continue
        before = node_operand(node, 2)
        function = function_of(before) if before.op == "call_function" and len(before.users) == 1 else None
        if function is not None:
            node.target = node.target.after(function)
            node.args = (*node.args[:2], node_operand(before))
            graph.erase_node(before)
