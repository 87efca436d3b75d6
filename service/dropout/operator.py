"""Our training operators: one node each in an exported graph, marked as random; it does not know variants or sites."""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "thinnet"
_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call] # torch leaves it untyped


def register(schema: str, forward: Callable[..., Any]) -> torch._ops.OpOverload:
    """Define an operator from its schema and a differentiable forward, and return it.

    The operator is tagged random, so that a graph which holds it unclaimed is refused.
    """
    name = _library.define(schema, tags=(torch.Tag.nondeterministic_seeded,))
    short = name.removeprefix(f"{NAMESPACE}::")
    _library.impl(short, forward, "CompositeImplicitAutograd")
    overload: torch._ops.OpOverload = getattr(torch.ops.thinnet, short).default
    return overload
