"""How inputs and outputs nest: tuples, lists and dicts only, because torch imports what else is named.

It does not know what the leaves are.
"""

import json
from typing import Any

from service.errors import UnsafeArchive
from service.graph.archive.plain_json import parse_json

_SEQUENCES = {"builtins.tuple", "builtins.list"}
_MAPPINGS = {"builtins.dict", "collections.OrderedDict"}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def checked_tree(text: str) -> str:
    """Return the text of a nesting as it is understood.

    Raises:
        UnsafeArchive: It holds anything but plain tuples, lists and dicts.
    """
    match parse_json(text, "the nesting"):
        case [1, dict(spec)]:
            return json.dumps([1, _branch(spec)])
        case _:
            raise UnsafeArchive("a nesting of inputs or outputs of another version; export the network again")


def keyword_names(text: str) -> list[str | int]:
    """Return the names of a checked nesting's keyword inputs."""
    match json.loads(text):
        case [1, {"children_spec": [_, {"type": "builtins.dict", "context": str(context)}]}]:
            return list(json.loads(context))
        case _:
            return []


def _branch(spec: Any) -> dict[str, Any]:
    match spec:
        case {"type": None, "context": None, "children_spec": []}:
            return _LEAF
        case {"type": str(kind), "context": str(context), "children_spec": list(children)}:
            return {
                "type": kind,
                "context": _context(kind, context, len(children)),
                "children_spec": [_branch(child) for child in children],
            }
        case _:
            raise UnsafeArchive("a nesting of inputs or outputs that lacks a type, context or children")


def _context(kind: str, context: str, children: int) -> str:
    if kind in _SEQUENCES and context == "null":
        return context
    keys = parse_json(context, "the keys of a dict") if kind in _MAPPINGS else None
    if not isinstance(keys, list) or len(keys) != children or not all(type(key) in (str, int) for key in keys):
        raise UnsafeArchive(
            f"inputs or outputs are held by {kind[:80]!r}, which is no plain tuple, list or dict, and torch would "
            "import what it names; return a dict of tensors, or save with Predictor.save"
        )
    return json.dumps(keys)
