"""Where each weight lies in its entry: within its bytes, as numbers; it does not know graphs.

Torch would unpickle an entry that is flagged so or named as an object, and fill memory for one that is empty.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch._export.serde.schema import ScalarType
from torch._export.serde.serialize import deserialize_scalar_type

from service.errors import UnsafeArchive

WEIGHT = re.compile(r"weight_[0-9]{1,9}")
CONSTANT = re.compile(r"tensor_[0-9]{1,9}")
MAX_BYTES = 8 << 30  # of an archive, and of what one tensor of it spans


def check_payloads(config: Mapping[str, Any], sizes: Mapping[str, int], pattern: re.Pattern[str]) -> frozenset[str]:
    """Check a copy of a `PayloadConfig` against the sizes of the entries, and return the entries that it uses.

    Args:
        config: The copy.
        sizes: Bytes of each entry, by its name in the config.
        pattern: What an entry's name looks like.

    Raises:
        UnsafeArchive: A tensor would be unpickled, is no entry's, or reaches past its entry.
    """
    kinds: dict[str, int] = {}
    for name, payload in config["config"].items():
        entry, meta = payload["path_name"], payload["tensor_meta"]
        if payload["use_pickle"] or not pattern.fullmatch(entry) or meta is None:
            raise UnsafeArchive(
                f"the tensor {name!r} is stored as a pickle, which can run any code; export plain tensors, no "
                "subclasses and no custom objects"
            )
        if entry not in sizes:
            raise UnsafeArchive(
                f"the tensor {name!r} is said to lie in {entry!r}, which is not there; copy the file again"
            )
        if kinds.setdefault(entry, meta["dtype"]) != meta["dtype"]:
            raise UnsafeArchive(f"the entry {entry!r} is said to hold two types of number; export the network again")
        _check_extent(name, meta, sizes[entry])
    return frozenset(kinds)


def _check_extent(name: str, meta: Mapping[str, Any], available: int) -> None:
    shape, strides = _whole(name, meta["sizes"]), _whole(name, meta["strides"])
    (offset,) = _whole(name, [meta["storage_offset"]])
    width = _width(meta["dtype"])
    elements = 1
    for size in shape:
        elements *= size
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False)) if elements else -1
    if len(shape) != len(strides) or available % width or (last + 1) * width > available:
        raise UnsafeArchive(f"the tensor {name!r} reaches past the {available} bytes of its entry; copy the file again")
    if elements * width > MAX_BYTES:
        raise UnsafeArchive(f"the tensor {name!r} spans {elements * width} bytes and at most {MAX_BYTES} are read")


def _whole(name: str, values: list[dict[str, Any]]) -> list[int]:
    found = [value.get("as_int", -1) for value in values]
    if min(found, default=0) < 0:
        raise UnsafeArchive(f"the tensor {name!r} has sizes, strides or an offset that are no whole numbers from 0")
    return found


def _width(dtype: int) -> int:
    try:
        return deserialize_scalar_type(ScalarType(dtype)).itemsize
    except KeyError as error:
        raise UnsafeArchive(
            f"the type {dtype} of numbers is not known; convert the weights and export again"
        ) from error
