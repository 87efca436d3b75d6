"""A rule for every field of an archive's JSON that is text, or that torch would do more with than store.

It does not know where a field stands. Names must be plain identifiers: torch writes them into the source of a function,
which it runs while loading.
"""

import keyword
import re
from collections.abc import Callable
from typing import Any

from torch._export.serde.schema import Layout

from service.errors import UnsafeArchive
from service.graph.archive.expressions import checked_expression, names_range
from service.graph.archive.operators import checked_operator
from service.graph.archive.trees import checked_tree, keyword_names

Rule = Callable[[Any], Any]  # the value as parsed → the value that torch gets; raises UnsafeArchive
MAX_TEXT = 10_000  # characters of a name or message
MAX_TREE = 1_000_000  # characters of a nesting of inputs or outputs
_PATH = re.compile(r"[\w.:/ -]*")
_DEVICES = {"cpu", "cuda"}
_DIALECTS = {"TRAINING", "ATEN"}
_KEPT_METADATA = ("nn_module_stack", "stack_trace")


def text(value: Any, limit: int = MAX_TEXT) -> str:
    """Return text that is only ever shown or compared."""
    if not isinstance(value, str) or len(value) > limit:
        raise UnsafeArchive(f"{str(value)[:40]!r} is not text of at most {limit} characters")
    return value


def name(value: Any) -> str:
    """Return the name of a tensor, number or graph."""
    if not text(value).isidentifier() or keyword.iskeyword(value):
        raise UnsafeArchive(f"{value[:80]!r} is not a plain name, and torch would run it as Python")
    return str(value)


def path(value: Any) -> str:
    """Return the path of a module or parameter; it is written into source code between quotes."""
    if not _PATH.fullmatch(text(value)):
        raise UnsafeArchive(
            f"{value[:80]!r} is not the path of a module or parameter, and torch would run it as Python"
        )
    return str(value)


def symbol(value: Any) -> str:
    """Return the name of a range."""
    if not names_range(text(value)):
        raise UnsafeArchive(f"{value[:80]!r} does not name a size; export the network again")
    return str(value)


def _argument_name(value: Any) -> str:
    return text(value) if value == "" or keyword.iskeyword(value) else name(value)


def _optional_name(value: Any) -> str | None:
    return None if value is None else name(value)


def _names(value: Any) -> list[str] | None:
    if not isinstance(value, list | None):
        raise UnsafeArchive(f"{str(value)[:40]!r} is not a list of names")
    return None if value is None else [name(each) for each in value]


def _operator(value: Any) -> str:
    return checked_operator(text(value))


def _expression(value: Any) -> str:
    return checked_expression(text(value))


def _output_tree(value: Any) -> str:
    return checked_tree(text(value, MAX_TREE))


def _input_tree(value: Any) -> str:
    checked = checked_tree(text(value, MAX_TREE))
    for each in keyword_names(checked):
        name(each)
    return checked


def _metadata(value: Any) -> dict[str, str]:
    """Keep what tells where in the user's code a node came from."""
    if not isinstance(value, dict):
        raise UnsafeArchive(f"{str(value)[:40]!r} is not a node's metadata")
    return {key: value[key][:MAX_TEXT] for key in _KEPT_METADATA if isinstance(value.get(key), str)}


def _device_type(value: Any) -> str:
    """Return the CPU for any device: an archive loads anywhere and is moved afterwards."""
    if text(value) not in _DEVICES:
        raise UnsafeArchive(
            f"the device {str(value)[:40]!r} is not known; move the network to the CPU and export it again"
        )
    return "cpu"


def _strided(value: Any) -> int:
    if value != Layout.Strided:
        raise UnsafeArchive("a sparse or special layout is not read; make the tensor dense and export again")
    return int(Layout.Strided)


def _dialects(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(each in _DIALECTS for each in map(str, value)):
        raise UnsafeArchive(f"{str(value)[:80]} is not a dialect of torch.export.export; save what that returned")
    return list(value)


def _without(what: str) -> Rule:
    def refuse(_: Any) -> Any:
        raise UnsafeArchive(f"{what} cannot be loaded safely; export the network without it")

    return refuse


def _empty(kind: type) -> Rule:
    return lambda _: kind()


FIELDS: dict[str, Rule] = {
    "Argument.as_custom_obj": _without("a custom object"),
    "Argument.as_layout": _strided,
    "Argument.as_operator": _without("an operator as an argument"),
    "Argument.as_string": text,
    "Argument.as_strings": _without("a list of texts"),
    "Argument.as_string_to_argument": _without("a dict of arguments"),
    "BufferMutationSpec.buffer_name": path,
    "ConstantValue.as_string": text,
    "CustomObjArgument.class_fqn": _without("a custom object"),
    "CustomObjArgument.name": _without("a custom object"),
    "Device.index": lambda _: None,
    "Device.type": _device_type,
    "ExportedProgram.guards_code": _empty(list),
    "ExportedProgram.opset_version": _empty(dict),
    "ExportedProgram.torch_version": text,
    "ExportedProgram.verifiers": _dialects,
    "GraphArgument.name": name,
    "GraphModule.metadata": _empty(dict),
    "GraphModule.treespec_namedtuple_fields": _empty(dict),
    "InputSpec.custom_obj": _without("a custom object"),
    "InputSpec.token": _without("an effect token"),
    "InputToBufferSpec.buffer_name": path,
    "InputToConstantInputSpec.name": name,
    "InputToParameterSpec.parameter_name": path,
    "InputToTensorConstantSpec.tensor_constant_name": path,
    "ModuleCallEntry.fqn": path,
    "ModuleCallSignature.forward_arg_names": _names,
    "ModuleCallSignature.in_spec": _input_tree,
    "ModuleCallSignature.out_spec": _output_tree,
    "NamedArgument.name": _argument_name,
    "Node.metadata": _metadata,
    "Node.name": _optional_name,
    "Node.target": _operator,
    "OutputSpec.gradient_to_parameter": _without("a training step"),
    "OutputSpec.gradient_to_user_input": _without("a training step"),
    "OutputSpec.loss_output": _without("a training step"),
    "OutputSpec.parameter_mutation": _without("a training step"),
    "OutputSpec.token": _without("an effect token"),
    "PayloadMeta.path_name": path,
    "SymBoolArgument.as_name": name,
    "SymExpr.expr_str": _expression,
    "SymFloatArgument.as_name": name,
    "SymIntArgument.as_name": name,
    "TensorArgument.name": name,
    "TensorMeta.layout": _strided,
    "UserInputMutationSpec.user_input_name": name,
}
KEYS: dict[str, Rule] = {"ExportedProgram.range_constraints": symbol, "PayloadConfig.config": path}
