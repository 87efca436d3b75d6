"""A tiny network named for its difficulty, its inputs, and the naive way to run one stochastic pass."""

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service import Predictor

WIDTH = 6


@dataclass(frozen=True)
class Specimen:
    """A network with its difficulty's name."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    coupled: bool = False
    eval_differs: bool = False  # eval shares memory that noise does not, or is random itself

    def __repr__(self) -> str:
        return self.name


class Block(nn.Module):
    """The basic block of a residual network (He et al. 2016)."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        )

    def branch(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return result

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += self.shortcut(x)
        result: Tensor = self.relu(y)
        return result


def mlp(drop: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), drop, nn.Linear(8, 3))


def features(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, WIDTH),)


def sequence(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 4, WIDTH),)


def image(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 1, 6, 6),)


def padded(rows: int) -> tuple[Tensor, ...]:
    padding = torch.zeros(rows, 4, dtype=torch.bool)
    padding[::2, 3] = True
    return torch.randn(rows, 4, WIDTH), padding


def with_length(rows: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, 4, WIDTH), torch.arange(rows) % 4


def tokens(rows: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 7, (rows, 4)),)


def build(specimen: Specimen) -> nn.Module:
    """Make the network with fixed weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return specimen.make().eval()


def naive(module: nn.Module) -> nn.Module:
    """Switch a module to what a careful hand-written loop uses: training mode, all that normalises in eval."""
    module.train()
    for child in module.modules():
        if isinstance(child, (nn.modules.batchnorm._NormBase, nn.utils.parametrizations._SpectralNorm)):
            child.eval()
    return module


@dataclass(frozen=True)
class Capture:
    """A captured specimen beside the caller's module.

    Attributes:
        predictor: What was captured.
        module: What it was captured from.
        flags: Which of its modules were in training mode before.
        state: A copy of its state before.
        drew: Whether capturing it moved torch's random numbers on.
    """

    predictor: Predictor
    module: nn.Module
    flags: list[bool]
    state: dict[str, Tensor]
    drew: bool


@functools.cache
def capture_of(specimen: Specimen) -> Capture:
    """Capture a specimen once for the whole run, every second module of it in training mode."""
    module = build(specimen)
    for index, child in enumerate(module.modules()):
        child.training = index % 2 == 0
    flags, state = [child.training for child in module.modules()], copy.deepcopy(module.state_dict())
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        torch.manual_seed(7)
        inputs = specimen.inputs(2)
        before = torch.get_rng_state()
        predictor = Predictor.capture(module, inputs)
        drew = not torch.equal(before, torch.get_rng_state())
    return Capture(predictor, module, flags, state, drew)


def captured(specimen: Specimen) -> Predictor:
    """Return a specimen's predictor."""
    return capture_of(specimen).predictor
