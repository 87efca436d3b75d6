"""Weights in other layouts, each made once for whatever uses a weight so; it does not know what for."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_MOST_PACKED = 16  # forms of a weight that are kept: images of several sizes may come
_packed: Any = WeakTensorKeyDictionary()  # weight → {how it is used: the packed form}; all plans share it


def packed(weight: Tensor, use: Hashable, pack: Callable[[], Any]) -> Any:
    """Return a weight as one use takes it, made by `pack` the first time."""
    made = _packed.setdefault(weight, {})
    if use not in made:
        while len(made) >= _MOST_PACKED:
            made.pop(next(iter(made)))
        with torch.inference_mode():
            made[use] = pack()
    return made[use]
