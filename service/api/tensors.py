"""Tensors in the Open Inference Protocol's terms: datatypes, JSON data, raw bytes; it does not know models.

Source: the protocol's REST specification and Triton's binary tensor data extension. Raw tensors are little-endian and
row-major; FP16 and BF16 travel as raw bytes only, as both sources have it.
"""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.errors import InvalidInput
from service.wire import array_from_json

DATATYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_MOST_PLACES = (1 << 63) // 8 - 1
_RAW_ONLY = ("FP16", "BF16")


def datatype_of(dtype: torch.dtype) -> str:
    """Return the protocol's name of a dtype."""
    return _NAMES[dtype]


def tensor_from_json(name: str, datatype: str, shape: list[int], data: Any) -> Tensor:
    """Return JSON data, nested or flat, as a tensor.

    Raises:
        InvalidInput: The data does not fit the datatype or the shape.
    """
    dtype = _dtype(name, datatype)
    _check_shape(name, shape)
    if datatype in _RAW_ONLY:
        raise InvalidInput(f"input {name!r}: {datatype} has no JSON form; send it as binary data, or as FP32")
    array = array_from_json(name, data)
    if array.size != prod(shape) or (array.ndim > 1 and list(array.shape) != shape):
        raise InvalidInput(f"input {name!r}: the data has the shape {list(array.shape)}, `shape` says {shape}")
    return _as_declared(name, datatype, array).to(dtype).reshape(shape)


def _as_declared(name: str, datatype: str, array: Any) -> Tensor:
    dtype = DATATYPES[datatype]
    if not array.size:
        return torch.empty(0)
    if not dtype.is_floating_point:
        if array.dtype.kind == "f":
            raise InvalidInput(f"input {name!r}: {datatype} takes whole numbers, the data has fractions")
        low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        if int(array.min()) < low or int(array.max()) > high:
            raise InvalidInput(f"input {name!r}: the data is outside of {datatype}, which holds {low} to {high}")
    return torch.from_numpy(np.ascontiguousarray(array))


def tensor_from_bytes(name: str, datatype: str, shape: list[int], raw: bytes) -> Tensor:
    """Return raw little-endian bytes as a tensor.

    Raises:
        InvalidInput: Their number does not fit datatype and shape.
    """
    dtype = _dtype(name, datatype)
    _check_shape(name, shape)
    need = prod(shape) * dtype.itemsize
    if len(raw) != need:
        raise InvalidInput(
            f"input {name!r}: {len(raw)} bytes of binary data, {datatype} with the shape {shape} needs {need}"
        )
    if not raw:
        return torch.empty(shape, dtype=dtype)
    stored = torch.uint8 if dtype == torch.bool else dtype
    return torch.frombuffer(bytearray(raw), dtype=stored).to(dtype).reshape(shape)


def bytes_of(tensor: Tensor) -> bytes:
    """Return a tensor's raw little-endian bytes."""
    return tensor.contiguous().numpy().tobytes()


def _check_shape(name: str, shape: list[int]) -> None:
    """Refuse what torch cannot describe, though it may hold nothing: [0, 2**40, 2**40]."""
    if prod(size for size in shape if size) > _MOST_PLACES:
        raise InvalidInput(f"input {name!r}: `shape` says {str(shape)[:80]}, which is more than memory can address")


def _dtype(name: str, datatype: str) -> torch.dtype:
    if datatype not in DATATYPES:
        raise InvalidInput(f"input {name!r}: datatype {datatype[:20]!r} cannot be served; send {', '.join(DATATYPES)}")
    return DATATYPES[datatype]
