"""Example inputs from short words such as `3x32x32` or `tokens:int64:16`; it does not know any network."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn

import torch
from torch import Tensor

from service.datasheet import DTYPES, TENSOR_NAME
from service.errors import InvalidInput

ROWS = 2
MAX_ELEMENTS = 1 << 28
_SEPARATOR = re.compile(r"\s*[x×,]\s*", re.IGNORECASE)


@dataclass(frozen=True)
class _Spec:
    name: str
    dtype: str
    shape: tuple[int, ...]


def parse_example(specs: Sequence[str]) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Make two rows of each input: normal floats, or integers 0 and 1.

    Args:
        specs: For each input `[name:][dtype:]shape`, the shape of one row without the batch axis; empty after a colon
            for one number a row. With names they become keyword arguments, without them positional ones.

    Returns:
        Tensors [2, …] by name, or in order.

    Raises:
        InvalidInput: A word cannot be read, or some have names and others not.
    """
    parsed = [_parse(spec) for spec in specs]
    names = [each.name for each in parsed if each.name]
    if not parsed:
        raise InvalidInput("an example is missing; give each input's shape without the batch axis, such as 3x32x32")
    if names and (len(names) < len(parsed) or len(set(names)) < len(names)):
        raise InvalidInput(f"examples {', '.join(specs)}: give every input a name of its own, or none of them")
    generator = torch.Generator().manual_seed(1)
    tensors = [_make(each, generator) for each in parsed]
    return dict(zip(names, tensors, strict=True)) if names else tuple(tensors)


def _parse(spec: str) -> _Spec:
    *words, sizes = (word.strip() for word in spec.split(":"))
    if len(words) > 2:
        _fail(spec, "has more than name, dtype and shape")
    dtype = words.pop() if words and (len(words) == 2 or words[-1] in DTYPES) else "float32"
    name = words[0] if words else ""
    if dtype not in DTYPES:
        _fail(spec, f"has no dtype {dtype!r}; known are {', '.join(DTYPES)}")
    if words and not TENSOR_NAME.fullmatch(name):
        _fail(spec, f"has {name!r} for a name; take the name of an argument of forward")
    return _Spec(name, dtype, _sizes(spec, sizes, optional=":" in spec))


def _sizes(spec: str, text: str, *, optional: bool) -> tuple[int, ...]:
    if optional and not text:
        return ()
    words = _SEPARATOR.split(text.strip("()[] "))
    if not all(re.fullmatch(r"[0-9]{1,9}", word) and int(word) for word in words):
        _fail(spec, f"has {text!r} for a shape, which is not whole numbers above 0")
    sizes = tuple(map(int, words))
    if prod(sizes) > MAX_ELEMENTS:
        _fail(spec, f"is {prod(sizes)} numbers a row, past the limit of {MAX_ELEMENTS}")
    return sizes


def _fail(spec: str, problem: str) -> NoReturn:
    raise InvalidInput(f"example {spec!r} {problem}; write 3x32x32 or tokens:int64:16, without the batch axis")


def _make(spec: _Spec, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    shape = (ROWS, *spec.shape)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)
