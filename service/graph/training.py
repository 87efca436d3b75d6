"""Export a module as it trains, and run it as it serves; it does not know sites.

Torch's fused attention is off throughout: its output differs on padded rows, and it leaves no dropout to see.
"""

import copy
import inspect
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from service.errors import CaptureFailed

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_NORMALISATION = (nn.modules.batchnorm._NormBase,)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


def eval_output(module: nn.Module, arguments: Arguments) -> list[Tensor]:
    """Return the tensors that the module gives in eval mode; dropout that is always on is off too."""
    clean = copy.deepcopy(module).eval()
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, arguments)
    with _quietly(), torch.random.fork_rng(), _WithoutDropout():
        result = clean(*args, **kwargs)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def export_training(module: nn.Module, arguments: Arguments, in_eval: frozenset[type]) -> ExportedProgram:
    """Export with every submodule training but normalisation layers and the classes named.

    Raises:
        CaptureFailed: The module cannot be exported, or draws random numbers that no graph shows.
    """
    module.train()
    for child in module.modules():
        if isinstance(child, _NORMALISATION) or type(child) in in_eval:
            child.training = False
    dynamic = pytree.tree_map_only(Tensor, lambda _: {0: Dim.DYNAMIC}, arguments)
    shapes = {**_by_parameter(module, dynamic[0]), **dynamic[1]}
    before, states = (random.getstate(), np.random.get_state()), _random_states(module)
    try:
        with _quietly(), torch.random.fork_rng():
            exported = export(module, *arguments, dynamic_shapes=shapes)
    except Exception as error:
        raise CaptureFailed(f"torch.export cannot read the network: {_first_line(error)}") from error
    if states != _random_states(module):
        random.setstate(before[0])
        np.random.set_state(before[1])
        raise CaptureFailed("the network calls Python's or NumPy's random numbers in training, which no graph can show")
    return exported


def eval_choices(module: nn.Module) -> Iterator[frozenset[type]]:
    """Yield sets of classes to leave in eval mode: none, each alone (the user's before torch's), at last all."""
    yield frozenset()
    classes = list({type(child): None for child in module.modules() if not isinstance(child, _NORMALISATION)})
    classes.sort(key=lambda cls: cls.__module__.startswith("torch.nn.modules"))
    yield from (frozenset({cls}) for cls in classes if not issubclass(cls, nn.modules.dropout._DropoutNd))
    yield frozenset(classes)


class _WithoutDropout(TorchFunctionMode):
    """Switch off functional dropout that does not look at the training flag."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            args, kwargs["training"] = (*args[:2], *args[3:4]), False
        return func(*args, **kwargs)


@contextmanager
def _quietly() -> Iterator[None]:
    """Run without gradients, without fused attention, and without torch's remarks on its own modules."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _random_states(module: nn.Module) -> list[str]:
    """Return the states of Python's and NumPy's generators, the global ones and those that the module holds."""
    held = [value for child in module.modules() for value in vars(child).values()]
    python = [value.getstate() for value in held if isinstance(value, random.Random)]
    numpy = [value.bit_generator.state for value in held if isinstance(value, np.random.Generator)]
    legacy = [value.get_state(legacy=False) for value in held if isinstance(value, np.random.RandomState)]
    with np.printoptions(threshold=sys.maxsize):
        return [repr(each) for each in (random.getstate(), np.random.get_state(), *python, *numpy, *legacy)]


def _by_parameter(module: nn.Module, dynamic: tuple[Any, ...]) -> dict[str, Any]:
    """Return the positional arguments' shapes by the names of the forward's parameters."""
    shapes: dict[str, Any] = {}
    for index, each in enumerate(list(inspect.signature(module.forward).parameters.values())[: len(dynamic)]):
        if each.kind is inspect.Parameter.VAR_POSITIONAL:
            shapes[each.name] = tuple(dynamic[index:])
            break
        shapes[each.name] = dynamic[index]
    return shapes


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
