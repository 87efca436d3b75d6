"""The caller's values as the network's tensors: names, shapes, types and finiteness checked, features standardised.

It does not know the wire's format or the network.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.errors import InvalidInput
from service.graph.tables import NOWHERE
from service.signature import Input
from service.transfers import sent

Given = Tensor | Sequence[Any] | Mapping[str, Any]
_MOST = float(np.finfo(np.float32).max)
_SMALL_VALUES = 1 << 14


def read_rows(
    inputs: Sequence[Input], given: Given, device: torch.device, tables: Sequence[Tensor | None] = ()
) -> tuple[Tensor, ...]:
    """Return one tensor for each input, checked and standardised, on the device.

    Args:
        inputs: What the network takes.
        given: A tensor [B, …] for a single input, a tuple in the inputs' order, or a mapping by name.
        device: Where the network is.
        tables: For each input, how long the tables are that its numbers are looked up in, as `table_lengths` tells.

    Raises:
        InvalidInput: Something does not fit; the message names input, row and feature.
    """
    read = [_read_one(spec, value) for spec, value in zip(inputs, _by_order(inputs, given), strict=True)]
    for spec, tensor, lengths in zip(inputs, read, tables, strict=False):
        if lengths is not None:
            _check_places(spec, tensor.cpu(), lengths)
    rows = {spec.name: tensor.shape[0] for spec, tensor in zip(inputs, read, strict=True)}
    if len(set(rows.values())) > 1:
        raise InvalidInput(f"the inputs have different numbers of rows: {rows}; give every input the same rows")
    return tuple(sent(standardise(spec, tensor), device) for spec, tensor in zip(inputs, read, strict=True))


def standardise(spec: Input, x: Tensor) -> Tensor:
    """Return (x - mean) / std along the last axis, where the input has them."""
    if not spec.mean and not spec.std:
        return x
    mean = torch.tensor(spec.mean or (0.0,), dtype=x.dtype, device=x.device)
    std = torch.tensor(spec.std or (1.0,), dtype=x.dtype, device=x.device)
    return (x - mean) / std


def _by_order(inputs: Sequence[Input], given: Given) -> Sequence[Any]:
    names = [spec.name for spec in inputs]
    if isinstance(given, Mapping):
        missing = [name for name in names if name not in given]
        unknown = [name for name in given if name not in names]
        if missing or unknown:
            raise InvalidInput(f"the inputs are {names}; missing: {missing}, unknown: {unknown}")
        return [given[name] for name in names]
    values = list(given) if isinstance(given, tuple) else [given]
    if len(values) != len(names):
        raise InvalidInput(f"the network takes {len(names)} inputs ({', '.join(names)}), {len(values)} were given")
    return values


def _read_one(spec: Input, value: Any) -> Tensor:
    read = _read_plain(spec, value)
    return _read_any(spec, value) if read is None else read


def _read_plain(spec: Input, value: Any) -> Tensor | None:
    """Return a few real numbers by NumPy, in a third of the time of torch; None where it is not as plain as that."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or spec.dtype != "float32":
        return None
    is_small = 0 < value.size <= _SMALL_VALUES
    if not (is_small and _fits(spec, value.shape) and float(np.abs(value).max()) <= _MOST):
        return None
    return torch.from_numpy(value.astype(np.float32))


def _read_any(spec: Input, value: Any) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"input {spec.name!r} is not a tensor of numbers: {error}") from None
    _check_shape(spec, tensor)
    if tensor.dtype.is_complex or (tensor.dtype.is_floating_point and not dtype.is_floating_point):
        raise InvalidInput(f"input {spec.name!r} wants {spec.dtype}, {tensor.dtype} was given; give whole numbers")
    _check_range(spec, tensor, dtype)
    converted = tensor.to(dtype)
    if dtype.is_floating_point and not all_finite(converted):
        check_finite(spec, tensor)
        check_finite(spec, converted, f" as {spec.dtype}")
    return converted


def all_finite(x: Tensor) -> bool:
    """Tell whether every number is finite; a sum that is finite has finite terms alone."""
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


def _check_range(spec: Input, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse whole numbers that the input's type cannot hold, which a conversion would wrap around."""
    if dtype.is_floating_point or dtype == tensor.dtype or tensor.dtype == torch.bool or not tensor.numel():
        return
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    values = tensor.cpu().numpy()  # torch has no extremes of wide unsigned types
    if int(values.min()) < low or int(values.max()) > high:
        raise InvalidInput(
            f"input {spec.name!r} is {spec.dtype}, which holds {low} to {high}; give numbers in that range"
        )


def _check_places(spec: Input, tensor: Tensor, lengths: Tensor) -> None:
    """Refuse what is looked up where there is nothing, which on a GPU would end the whole process."""
    outside = (tensor >= lengths) | ((tensor < 0) & (lengths < NOWHERE))
    if bool(outside.any()):
        row, *place = outside.nonzero()[0].tolist()
        value, length = tensor[(row, *place)].item(), lengths.expand(tensor.shape)[(row, *place)].item()
        where = f"position {place}" if place else "the value"
        raise InvalidInput(
            f"input {spec.name!r}, row {row}, {where} is {value}, and the network's table has the places 0 to "
            f"{int(length) - 1}; give numbers in that range"
        )


def _fits(spec: Input, shape: Sequence[int]) -> bool:
    """Tell whether a shape is one of rows of an input."""
    return len(shape) == len(spec.shape) + 1 and all(map(_is_length, spec.shape, shape[1:]))


def _is_length(wanted: int, length: int) -> bool:
    return wanted in (-1, length)


def _check_shape(spec: Input, tensor: Tensor) -> None:
    if tensor.dim() and not tensor.shape[0]:
        raise InvalidInput(f"input {spec.name!r} has no rows; give one at least")
    expected = ("rows", *("any" if size < 0 else size for size in spec.shape))
    if not _fits(spec, tensor.shape):
        found, wanted = list(tensor.shape), "[" + ", ".join(map(str, expected)) + "]"
        cure = "; put the rows in a list, even a single one" if tensor.dim() == len(spec.shape) else ""
        raise InvalidInput(f"input {spec.name!r} has the shape {found}, it should be {wanted}{cure}")


def check_finite(spec: Input, tensor: Tensor, how: str = "") -> None:
    """Refuse NaN and infinity by row and feature.

    Raises:
        InvalidInput: There is one.
    """
    bad = (~tensor.isfinite()).nonzero()
    if len(bad):
        row, *place = bad[0].tolist()
        value = tensor[tuple(bad[0].tolist())].item()
        named = spec.features and place and len(spec.features) == tensor.shape[-1]
        where = f"feature {spec.features[place[-1]]!r}" if named else f"position {place}" if place else "the value"
        raise InvalidInput(f"input {spec.name!r}, row {row}, {where} is {value}{how}; give finite numbers")
