"""An archive's JSON, taken apart along torch's own schema and put together again from what is known.

What the schema does not name is dropped. What it names is checked: numbers by type and size, text by the rule of its
field (`service.graph.archive.fields`), and text without a rule is refused. Graphs nested in a graph are met on the way.
It does not know zip files, or where the weights' bytes lie.
"""

import dataclasses
import functools
import types
import typing
from enum import IntEnum
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from service.errors import UnsafeArchive
from service.graph.archive import fields

_FLOATS = ("Infinity", "-Infinity", "NaN")


def checked_copy(kind: Any, value: Any) -> dict[str, Any]:
    """Return a copy of a JSON value that is exactly what one of torch's schema classes describes.

    Args:
        kind: The class, such as `schema.ExportedProgram`.
        value: The value as parsed.

    Raises:
        UnsafeArchive: Something is not as the schema or a rule says; the message tells where.
    """
    try:
        copy: dict[str, Any] = _copy(kind, value, kind.__name__)
    except RecursionError as error:
        raise UnsafeArchive(f"{kind.__name__} is nested deeper than any network is") from error
    return copy


def _copy(kind: Any, value: Any, at: str, key: fields.Rule = fields.name) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _copy(arguments[0], value, at, key)
    if origin is list:
        return [_copy(arguments[0], each, f"{at}[{index}]") for index, each in enumerate(_container(list, value, at))]
    if origin is dict:
        return _mapping(arguments[1], value, at, key)
    if isinstance(kind, type) and issubclass(kind, _Union):
        return _variant(kind, value, at)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, at)
    return _number(kind, value, at)


def _mapping(kind: Any, value: Any, at: str, key: fields.Rule) -> dict[str, Any]:
    items = _container(dict, value, at).items()
    return {_ruled(key, name, at): _copy(kind, each, f"{at}[{name[:80]!r}]") for name, each in items}


def _variant(kind: Any, value: Any, at: str) -> dict[str, Any]:
    names = list(_container(dict, value, at))
    known = [each.name for each in dataclasses.fields(kind)]
    if len(names) != 1 or names[0] not in known:
        raise UnsafeArchive(f"{at}: {str(names)[:80]} is not one of {', '.join(known)}; export the network again")
    return {names[0]: _field(kind, names[0], value[names[0]], at)}


def _record(kind: Any, value: Any, at: str) -> dict[str, Any]:
    _container(dict, value, at)
    declared = dataclasses.fields(kind)
    for each in declared:
        needed = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if needed and each.name not in value:
            raise UnsafeArchive(f"{at}: {each.name!r} is missing; export the network again")
    copy = {each.name: _field(kind, each.name, value[each.name], at) for each in declared if each.name in value}
    if kind is schema.Graph:
        copy["nodes"] = [node for node in copy["nodes"] if not _is_empty_region(node)]
    return copy


def _is_empty_region(node: dict[str, Any]) -> bool:
    """Tell whether a node runs an empty graph for nothing, as torch saves nested regions but cannot load them."""
    nested = [each["arg"]["as_graph"]["graph"] for each in node["inputs"] if "as_graph" in each["arg"]]
    return bool(nested) and not node["outputs"] and not any(graph["nodes"] for graph in nested)


def _field(kind: type, name: str, value: Any, at: str) -> Any:
    place, field = f"{at}.{name}", f"{kind.__name__}.{name}"
    if field in fields.FIELDS:
        return _ruled(fields.FIELDS[field], value, place)
    return _copy(_hints(kind)[name], value, place, fields.KEYS.get(field, fields.name))


def _ruled(rule: fields.Rule, value: Any, at: str) -> Any:
    try:
        return rule(value)
    except UnsafeArchive as error:
        raise UnsafeArchive(f"{at}: {error}") from error


def _number(kind: Any, value: Any, at: str) -> Any:
    """Return a number, a truth value or a member of an enumeration; text has no business here."""
    whole = type(value) is int and -(1 << 63) <= value < 1 << 64
    if kind is bool and isinstance(value, bool):
        return value
    if kind is float and (whole or type(value) is float or value in _FLOATS):
        return value
    if whole and (kind is int or (issubclass(kind, IntEnum) and value in {int(each) for each in kind})):
        return value
    raise UnsafeArchive(
        f"{at}: {str(value)[:40]!r} is not a {kind.__name__} that can be read; export the network again"
    )


def _container(kind: type, value: Any, at: str) -> Any:
    if not isinstance(value, kind):
        raise UnsafeArchive(f"{at}: {str(value)[:40]!r} is not a {kind.__name__}; export the network again")
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))
