"""What a captured network takes and gives, described as far as its graph tells; it does not know what outputs mean."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import fx

from service.errors import ModelFault
from service.graph.capture import Captured
from service.graph.nodes import returned, value_of
from service.signature import Input, Output

_Said = TypeVar("_Said", Input, Output)


def described_inputs(captured: Captured, given: Sequence[Input] | None = None) -> tuple[Input, ...]:
    """Return what is said of the inputs, or names, types and shapes where nothing is.

    Raises:
        ModelFault: It says more or fewer inputs than there are.
    """
    nodes, names = captured.program.placeholders(), captured.program.inputs
    if given is not None:
        return _as_many(tuple(given), names, "inputs")
    return tuple(Input(name, _dtype(node), _row_shape(node)) for name, node in zip(names, nodes, strict=True))


def described_outputs(captured: Captured, given: Sequence[Output] | None = None) -> tuple[Output, ...]:
    """Return what is said of the outputs, or names and shapes where nothing is.

    Raises:
        ModelFault: It says more or fewer outputs than there are.
    """
    nodes, names = returned(captured.program.graph.graph), captured.program.outputs
    if given is not None:
        return _as_many(tuple(given), names, "outputs")
    return tuple(Output(name, shape=_row_shape(node)) for name, node in zip(names, nodes, strict=True))


def _dtype(node: fx.Node) -> str:
    return str(value_of(node).dtype).removeprefix("torch.")


def _row_shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(-1 if isinstance(size, torch.SymInt) else int(size) for size in value_of(node).shape[1:])


def _as_many(said: tuple[_Said, ...], names: tuple[str, ...], what: str) -> tuple[_Said, ...]:
    if len(said) != len(names):
        raise ModelFault(f"{len(said)} {what} are described, the network has {len(names)}: {', '.join(names)}")
    return said
