"""JSON of unknown origin: each key once, plain numbers, an end to its depth; it does not know archives."""

import json
from typing import Any

from service.errors import UnsafeArchive


def parse_json(data: bytes | str, at: str) -> Any:
    """Read JSON.

    Args:
        data: The text.
        at: What to call it in a message.

    Raises:
        UnsafeArchive: It is not JSON, repeats a key, is nested too deep, or has a number that JSON has not.
    """
    try:
        return json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UnsafeArchive(f"{at} is not plain JSON: {str(error)[:80]}; export the network again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
