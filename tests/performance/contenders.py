"""What a user would pick to get a mean and a variance from passes: loops written by hand, two libraries, and thinnet.

The libraries are optional:
`pip install --no-deps baal==2.1.0 torch-uncertainty==0.13.0 einops`. Of each only the module
that makes a network stochastic is imported, since their packages need a training framework, plots and image tools.
"""

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

import torch
from by_hand import by_hand, fold, has_dropconnect
from torch import Tensor, nn
from workloads import Workload

from service import Predictor

Moments = tuple[Tensor, Tensor]


class Contender(ABC):
    """One way to get mean and variance; a call takes inputs [B, …] and gives each [B, …]."""

    name: str
    compiles = False  # whether the first call makes ready what later ones use

    @abstractmethod
    def __init__(self, workload: Workload) -> None:
        """Make the network ready.

        Raises:
            NotImplementedError: It cannot do this workload, with the reason.
        """

    @abstractmethod
    def __call__(self, x: Tensor) -> Moments:
        """Return the mean and the unbiased variance of the workload's passes."""


class Thinnet(Contender):
    """This project as it is asked by default: the same seed in every call."""

    name = "thinnet"
    compiles = True
    seed: int | None = 0

    def __init__(self, workload: Workload) -> None:
        """Capture the network."""
        self.passes, self.predictor = workload.passes, captured(replace(workload, passes=0))

    def __call__(self, x: Tensor) -> Moments:
        """Predict."""
        prediction = self.predictor.predict(x, passes=self.passes, seed=self.seed)
        return prediction.mean, prediction.variance


class FreshThinnet(Thinnet):
    """The same with new noise in every call, as the others draw it."""

    name = "thinnet, fresh seed"
    seed = None


class HandLoop(Contender):
    """Training mode, normalisation in eval mode, one pass after the other."""

    name = "hand loop"

    def __init__(self, workload: Workload) -> None:
        """Switch the network by hand."""
        self.passes, self.network = workload.passes, by_hand(workload.build())

    def __call__(self, x: Tensor) -> Moments:
        """Loop."""
        with torch.inference_mode():
            return _moments(torch.stack([self.network(x) for _ in range(self.passes)]))


class HandFolded(HandLoop):
    """The same network on all passes as one batch; of DropConnect, layers with the passes as an axis of their own."""

    name = "hand-folded"

    def __init__(self, workload: Workload) -> None:
        """Switch the network by hand."""
        super().__init__(workload)
        self.has_axis = fold(self.network, self.passes)

    def __call__(self, x: Tensor) -> Moments:
        """Repeat the rows, unless the layers add the axis."""
        with torch.inference_mode():
            if self.has_axis:
                return _moments(self.network(x))
            return _moments(self.network(x.repeat(self.passes, *[1] * (x.dim() - 1))).unflatten(0, (self.passes, -1)))


class HandCached(HandLoop):
    """A loop over the layers from the first dropout on, those before it run once."""

    name = "hand loop, trunk cached"

    def __init__(self, workload: Workload) -> None:
        """Cut the network by hand."""
        super().__init__(workload)
        self.trunk, self.network = _cut(self.network, workload.trunk)

    def __call__(self, x: Tensor) -> Moments:
        """Run the first part once, then loop."""
        with torch.inference_mode():
            return super().__call__(self.trunk(x))


class HandFoldedCached(HandFolded):
    """The layers from the first dropout on, on all passes as one batch; those before it run once."""

    name = "hand-folded, trunk cached"

    def __init__(self, workload: Workload) -> None:
        """Cut the network by hand."""
        super().__init__(workload)
        self.trunk, self.network = _cut(self.network, workload.trunk)

    def __call__(self, x: Tensor) -> Moments:
        """Run the first part once, then all passes of the rest."""
        with torch.inference_mode():
            return super().__call__(self.trunk(x))


class Baal(Contender):
    """baal's patched dropout layers on a stacked batch, as its `predict_on_batch` does."""

    name = "baal"

    def __init__(self, workload: Workload) -> None:
        """Patch the network."""
        module = _module("baal", "baal.bayesian.dropout")
        if has_dropconnect(workload.build()):
            raise NotImplementedError("its DropConnect leaves biases whole")
        self.passes, self.network = workload.passes, module.patch_module(workload.build(), inplace=False).eval()

    def __call__(self, x: Tensor) -> Moments:
        """Stack the rows."""
        with torch.no_grad():
            stacked = torch.stack([x] * self.passes).flatten(0, 1)
            return _moments(self.network(stacked).unflatten(0, (self.passes, -1)))


class TorchUncertainty(Contender):
    """torch-uncertainty's MC dropout on a repeated batch."""

    name = "torch-uncertainty"

    def __init__(self, workload: Workload) -> None:
        """Wrap the network."""
        module = _module("torch_uncertainty", "torch_uncertainty.methods.mc_dropout")
        try:
            self.network = module.mc_dropout(workload.build(), workload.passes).eval()
        except ValueError as error:
            raise NotImplementedError(str(error)) from error
        self.passes = workload.passes

    def __call__(self, x: Tensor) -> Moments:
        """Call the wrapper."""
        with torch.no_grad():
            return _moments(self.network(x).unflatten(0, (self.passes, -1)))


PEERS: tuple[type[Contender], ...] = (HandLoop, HandFolded, HandCached, HandFoldedCached, Baal, TorchUncertainty)


def ready(workload: Workload, kinds: Sequence[type[Contender]]) -> dict[str, Contender]:
    """Return the contenders that can do a workload, by name."""
    found: dict[str, Contender] = {}
    for kind in kinds:
        with suppress(NotImplementedError):
            found[kind.name] = kind(workload)
    return found


@lru_cache(maxsize=1)
def captured(workload: Workload) -> Predictor:
    """Capture a network once for all its numbers of rows and passes."""
    x = workload.inputs(2)
    return Predictor.capture(workload.build(), x, device=x.device)


def peer_versions() -> str:
    """Name the libraries and their versions."""
    told = []
    for name in ("torch", "baal", "torch-uncertainty"):
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            told.append(f"{name} not installed")
    return ", ".join(told)


def _cut(network: nn.Module, trunk: int | None) -> tuple[nn.Module, nn.Module]:
    if trunk is None:
        raise NotImplementedError("nothing stands before the first dropout, or it is inside a layer")
    assert isinstance(network, nn.Sequential)
    return network[:trunk], network[trunk:]


def _module(package: str, name: str) -> ModuleType:
    """Import one module of a package without running what the package itself imports."""
    parts = name.split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        parent = ".".join(parts[:depth])
        if parent not in sys.modules:
            spec = find_spec(parent) if depth == 1 else None
            if depth == 1 and spec is None:
                raise NotImplementedError("not installed")
            empty = ModuleType(parent)
            empty.__path__ = (
                list(spec.submodule_search_locations or [])
                if spec is not None
                else [f"{place}/{parts[depth - 1]}" for place in sys.modules[".".join(parts[: depth - 1])].__path__]
            )
            sys.modules[parent] = empty
    return importlib.import_module(name)


def _moments(passes: Tensor) -> Moments:
    return passes.mean(0), passes.var(0)
