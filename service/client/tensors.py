"""Arrays as the Open Inference Protocol's binary tensors, both ways; it does not know models.

Source: the protocol's REST specification and Triton's binary tensor data extension. Raw tensors are little-endian and
row-major, behind a JSON header whose length a header of HTTP tells.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.client.exchange import Reply
from service.errors import InvalidInput

Array = NDArray[Any]
HEADER_LENGTH = "Inference-Header-Content-Length"
_DATATYPES = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign}INT{bits}".upper() for sign in ("u", "") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
_DTYPES = {datatype: np.dtype(dtype).newbyteorder("<") for dtype, datatype in _DATATYPES.items()}


def as_array(name: str, given: Any) -> Array:
    """Return what was given for an input as an array of numbers, as exact as it was given.

    Args:
        name: The input's name, for messages.
        given: An array, nested lists, or what NumPy makes an array of.

    Raises:
        InvalidInput: It is no array of numbers; with the place where that can be told.
    """
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if not isinstance(given, list):
            raise InvalidInput(f"input {name!r} is no array of numbers: {error}") from None
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        from service.wire import array_from_json  # only now: it says where, and brings pydantic

        return np.asarray(array_from_json(name, given if isinstance(given, list) else array.tolist()))
    if array.dtype.name not in _DATATYPES:
        array = array.astype(np.float64)  # a long double
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def encode(inputs: Mapping[str, Array], parameters: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an inference that is answered in binary.

    Args:
        inputs: Little-endian arrays by input name.
        parameters: The request's parameters.
    """
    raw = [array.tobytes() for array in inputs.values()]
    described = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": _DATATYPES[array.dtype.name],
            "parameters": {"binary_data_size": len(content)},
        }
        for (name, array), content in zip(inputs.items(), raw, strict=True)
    ]
    asked = {"parameters": {"binary_data_output": True, **parameters}, "inputs": described}
    header = orjson.dumps(asked, option=orjson.OPT_SERIALIZE_NUMPY)
    told = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return b"".join([header, *raw]), told


def decode(reply: Reply) -> tuple[dict[str, Any], dict[str, Array]]:
    """Take an answer apart: its JSON, and its tensors by name.

    Raises:
        RemoteFault: It is not as the protocol says, or is cut short.
    """
    told = reply.headers.get(HEADER_LENGTH.lower(), str(len(reply.body)))
    length = int(told) if told.isdecimal() else -1
    if not 0 <= length <= len(reply.body):
        raise reply.foreign(f"answers with {len(reply.body)} bytes, and says that the first {told[:20]} are JSON")
    header = Reply(reply.where, reply.status, reply.headers, reply.body[:length]).json()
    try:
        return header, _read_tensors(header, memoryview(reply.body)[length:])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise reply.foreign(f"gives no tensors as the Open Inference Protocol has them ({error!r})") from None


def _read_tensors(header: Mapping[str, Any], rest: memoryview) -> dict[str, Array]:
    found = {}
    for each in header["outputs"]:
        dtype, shape = _DTYPES[each["datatype"]], tuple(int(size) for size in each["shape"])
        size, need = each.get("parameters", {}).get("binary_data_size"), prod(shape) * dtype.itemsize
        if size is None:
            found[each["name"]] = np.array(each["data"], dtype).reshape(shape)
            continue
        if size != need or len(rest) < size:
            raise ValueError(f"{each['name']} {list(shape)} needs {need} bytes, and {len(rest)} are left")
        found[each["name"]] = np.frombuffer(rest[:size], dtype).reshape(shape).astype(dtype.newbyteorder("="))
        rest = rest[size:]
    if len(rest):
        raise ValueError(f"{len(rest)} bytes are left over")
    return found
