"""The contract of a dropout variant: how its noise is drawn, how it acts, and what mean and variance that gives.

It does not know graphs, passes in flight, or where in a network a site stands.

Every variant file has the same parts in the same order: equation, what is sampled and shared, defaults, `draw`,
`apply`, `mean`, `variance`, and, where torch has none, the layer to train with.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.windows import Window
from service.errors import InvalidPlan


class Kind(StrEnum):
    """What a site is."""

    ACTIVATION = "activation"
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    RESIDUAL = "residual"
    WEIGHT = "weight"
    GATED = "gated"
    BRANCHES = "branches"
    CONV = "convolution"
    EMBEDDING = "embedding"
    RECURRENT_WEIGHT = "recurrent weight"
    SPARSE_WEIGHT = "sparse weight"
    HIDDEN = "hidden"
    SELU = "self-normalising"
    INPUT = "input"
    ADDITION = "addition"
    POOL = "pooling"
    CELL = "cell"


HIDDEN = frozenset({Kind.HIDDEN, Kind.SELU})
ELEMENTWISE = HIDDEN | {Kind.ACTIVATION, Kind.ATTENTION, Kind.RECURRENT, Kind.RESIDUAL, Kind.INPUT}


@dataclass(frozen=True)
class Variant(ABC):
    """One dropout method with its parameters; q = 1 - p throughout.

    Attributes:
        p: The probability of dropping, 0 ≤ p < 1.
    """

    name: ClassVar[str]
    equation: ClassVar[str]
    sampled: ClassVar[str]
    shared: ClassVar[str]
    mean_form: ClassVar[str]
    variance_form: ClassVar[str]
    reference: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    joint: ClassVar[bool] = True
    """Whether one pass's noise gives rows and positions the covariance that one sampled network gives them."""
    per_channel: ClassVar[bool] = False
    """Whether each channel, the first axis of a row, has one draw for all its positions."""

    on_images: ClassVar[bool] = False
    """Whether it acts on images [C, H, W] alone, and not on other tensors of three axes."""

    rated: ClassVar[bool] = True
    """Whether it has a rate; one without declares `p: float = field(default=0.0, init=False)`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise InvalidPlan(f"{self.name}: p = {self.p} is not a drop probability; give 0 <= p < 1")

    @property
    def q(self) -> float:
        """The probability of keeping."""
        return 1 - self.p

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.p > 0 or not self.rated

    @property
    def fixed_passes(self) -> int | None:
        """The only number of passes that it can run, where there is one."""
        return None

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether the variant can act at a site of this kind and per-row shape."""
        return kind in self.kinds

    def parameters(self) -> dict[str, float]:
        """Return the parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.init}

    @abstractmethod
    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw the noise [S, R, …] of a site whose per-row shape is `shape`; axes that share a draw have size 1."""


@dataclass(frozen=True)
class ActivationVariant(Variant):
    """A variant that acts on a tensor of activations; `mean` and `variance` hold for a fixed input."""

    scales: ClassVar[bool] = False
    """Whether it acts as x ∘ noise."""
    zeroes: ClassVar[bool] = False
    """Whether it scales, and its noise is exactly 0 wherever it drops."""

    @abstractmethod
    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Act on x [S?, B, *shape] with noise [S?, 1 or B, …], broadcasting."""

    @abstractmethod
    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over passes, element by element."""

    @abstractmethod
    def variance(self, x: Tensor) -> Tensor:
        """Return the variance over passes, element by element."""


@dataclass(frozen=True)
class PairedVariant(Variant):
    """A variant that acts on two tensors of one shape; where its site is off, they meet in a form of its own."""

    @abstractmethod
    def off(self, first: Tensor, second: Tensor) -> Tensor:
        """Return what the layer computes in eval mode."""

    @abstractmethod
    def apply(self, first: Tensor, second: Tensor, noise: Tensor) -> Tensor:
        """Act on both [S?, B, *shape] with noise [S?, 1 or B, …], broadcasting."""

    @abstractmethod
    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the mean over passes, element by element."""

    @abstractmethod
    def variance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the variance over passes, element by element."""


@dataclass(frozen=True)
class PoolVariant(Variant):
    """A variant of a pooling layer; `mean` and `variance` are those of its result for a fixed input [*, *lengths]."""

    per_window: ClassVar[bool] = False
    """Whether `draw` is given the shape of the layer's result, rather than of its input."""

    @abstractmethod
    def apply(self, x: Tensor, noise: Tensor, window: Window) -> Tensor:
        """Pool x [S?, B, *shape] over its last axes with noise [S?, 1 or B, …], broadcasting."""

    @abstractmethod
    def mean(self, x: Tensor, window: Window) -> Tensor:
        """Return the mean over passes: what the variant's own layer computes in eval mode."""

    @abstractmethod
    def variance(self, x: Tensor, window: Window) -> Tensor:
        """Return the variance over passes, window by window."""


@dataclass(frozen=True)
class WeightVariant(Variant):
    """A variant of a linear layer u = Wx + b, its bias a last column of W whose input is 1.

    `draw` is given the shape (out, in + biases). `mean` and `variance` are those of u for a fixed x [B, in].
    """

    learned: ClassVar[bool] = False
    """Whether its layer learns a log variance [out, in], which `variance` and what acts take as a last operand."""

    @abstractmethod
    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the mean over passes [B, out]."""

    @abstractmethod
    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the variance over passes [B, out]."""


@dataclass(frozen=True)
class MaskedWeight(WeightVariant):
    """A weight variant that changes the parameters themselves."""

    masks_bias: ClassVar[bool] = True
    """Whether the bias has noise too, in columns of its own; otherwise `draw` is given the shape (out, in)."""
    oriented: ClassVar[bool] = False
    """Whether it tells inputs from outputs, so that every use of the weight must be a layer's own [out, in]."""
    before_pruning: ClassVar[bool] = False
    """Whether it takes the weight as it was before a layer that prunes in eval mode has pruned it."""

    @abstractmethod
    def apply(self, parameter: Tensor, noise: Tensor) -> Tensor:
        """Act on a weight [out, in] or bias [out] with its own columns of the noise, broadcasting in front."""


@dataclass(frozen=True)
class SampledProduct(WeightVariant):
    """A weight variant that draws each unit's u from its first two moments, pass by pass."""

    joint = False

    @abstractmethod
    def spread(self, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return V [out, in] and c [out] of the variance V x² + c, the same for every x."""

    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> Tensor:
        """Return V x² + c [B, out]."""
        return F.linear(x.square(), *self.spread(weight, bias, *learned))

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw z ~ N(0, 1), one for each unit [S, R, out]."""
        return stream.normal(shape[:1])

    def moments(self, x: Tensor, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of u [B, out]; shared by all passes where x is."""
        return self.mean(x, weight, bias), self.variance(x, weight, bias, *learned)

    def apply(self, mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        """Return u = mean + √variance · z [S?, B, out]."""
        return torch.addcmul(mean, variance.sqrt(), noise)


class Place(StrEnum):
    """Where in one step of a recurrent cell noise acts."""

    INPUT = "input"
    """x_t, before its products with the gates' weights."""
    STATE = "state"
    """h_{t-1}, before its."""
    CANDIDATE = "candidate"
    """g_t of an LSTM, h̃_t of a GRU."""
    CELL = "cell"
    """The new c_t of an LSTM, before h_t is read from it."""
    MEMORY = "memory"
    """What is carried on: c_t of an LSTM, once h_t has been read from it; h_t of a GRU."""
    OUTPUT = "output"
    """h_t of an LSTM."""


@dataclass(frozen=True)
class CellVariant(Variant):
    """A variant that acts within an LSTM's or a GRU's steps, of shape (steps, directions, gates, inputs, units).

    Its noise [S, R, steps or 1, directions, columns] has the columns of each place in turn. `apply`, `mean` and
    `variance` are of a value `new` at a place where one step before there was `old`, both fixed.
    """

    places: ClassVar[tuple[Place, ...]]
    neutral: ClassVar[float] = 1.0
    """The noise that changes nothing."""

    @property
    def plain_in_eval(self) -> bool:
        """Whether the eval network is the layer without noise."""
        return all(self.expected(place) == self.neutral for place in self.places)

    @property
    def each_step(self) -> bool:
        """Whether every step has a draw of its own; otherwise a sequence has one."""
        return False

    def widths(self, shape: Shape) -> tuple[int, ...]:
        """Return how many columns each place has."""
        *_, inputs, units = shape
        return tuple(inputs if place is Place.INPUT else units for place in self.places)

    def drawn(self, shape: Shape) -> Shape:
        """Return the shape of one row's noise."""
        return (shape[0] if self.each_step else 1, shape[1], sum(self.widths(shape)))

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw the noise [S, R, steps or 1, directions, columns]."""
        return self.noise(stream.uniform(self.drawn(shape)), shape)

    @abstractmethod
    def noise(self, uniform: Tensor, shape: Shape) -> Tensor:
        """Make noise [*, columns], float32, of numbers U(0, 1)."""

    @abstractmethod
    def expected(self, place: Place) -> float:
        """Return the noise under which the layer is its eval network."""

    @abstractmethod
    def apply(self, new: Tensor, old: Tensor, noise: Tensor) -> Tensor:
        """Act on a step's values [*, columns of the place], broadcasting."""

    @abstractmethod
    def mean(self, new: Tensor, old: Tensor) -> Tensor:
        """Return the mean over passes, element by element."""

    @abstractmethod
    def variance(self, new: Tensor, old: Tensor) -> Tensor:
        """Return the variance over passes, element by element."""


def scaled_keep(stream: Stream, q: float, shape: Shape) -> Tensor:
    """Draw m / q with m ~ Bernoulli(q), as float32 [S, R, *shape]."""
    return stream.keep(q, shape).view(torch.uint8).to(torch.float32).mul_(1 / q)  # from bool it takes ten times as long


def shared_after_first(shape: Shape) -> Shape:
    """Return the shape of one draw for each channel (the first per-row axis), shared over the rest."""
    return shape[:1] + (1,) * (len(shape) - 1)
