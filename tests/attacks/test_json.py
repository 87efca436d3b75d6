"""Graphs and lists of weights that say what no honest export says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import pytest
import torch

from service.errors import UnsafeArchive
from service.graph.archive import load_program

Edit = Callable[[Any], object]


def loaded(tmp_path: Path, entries: forge.Entries) -> torch.export.ExportedProgram:
    path = tmp_path / "program.pt2"
    path.write_bytes(forge.packed(entries))
    return load_program(path)


def targeting(target: str, nested: bool = False) -> Edit:
    """Change an operator's name."""

    def edit(model: Any) -> None:
        graph = forge.nested_graph_of(model) if nested else forge.graph_of(model)
        graph["nodes"][-1]["target"] = target

    return edit


def measuring(expression: Any, hint: Any = 2) -> Edit:
    """Change the first size of the input."""

    def edit(model: Any) -> None:
        sizes = forge.graph_of(model)["tensor_values"]["x"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": expression, "hint": {"as_int": hint}}}

    return edit


def passing(argument: Any) -> Edit:
    """Change the dropout's rate to another argument."""

    def edit(model: Any) -> None:
        forge.node_of(model, "dropout")["inputs"][1]["arg"] = argument

    return edit


def taking(spec: Any) -> Edit:
    """Change the first of what the graph takes."""

    def edit(model: Any) -> None:
        model["graph_module"]["signature"]["input_specs"][0] = spec

    return edit


def ranging(name: str, low: Any = 2) -> Edit:
    def edit(model: Any) -> None:
        model["range_constraints"][name] = {"min_val": low, "max_val": None}

    return edit


def nesting(field: str, tree: Any) -> Edit:
    def edit(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        signature[field] = tree if isinstance(tree, str) else json.dumps([1, tree])

    return edit


def branch(kind: str | None, context: str | None, *children: Any) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


def setting(*keys: Any, to: Any) -> Edit:
    """Change the value at a path of keys."""

    def edit(model: Any) -> None:
        for key in keys[:-1]:
            model = model[key]
        model[keys[-1]] = to

    return edit


def dropping(*keys: Any) -> Edit:
    def edit(model: Any) -> None:
        for key in keys[:-1]:
            model = model[key]
        del model[keys[-1]]

    return edit


LEAF = branch(None, None)
GRAPH = ("graph_module", "graph")
X = (*GRAPH, "tensor_values", "x")
NODE = (*GRAPH, "nodes", 0)
DEEP = '{"type": "builtins.tuple", "context": "null", "children_spec": ['
GRAPHS: dict[str, tuple[Edit, str]] = {
    "an extension operator": (targeting("#evil:run"), r"target: the graph runs '#evil:run', which is not on"),
    "an operator of another library": (targeting("torch.ops.torchvision.nms.default"), r"'torch.ops.torchvision.nms"),
    "a function of Python": (targeting("_operator.attrgetter"), r"the graph runs '_operator.attrgetter'"),
    "a function of torch": (targeting("torch.load"), r"the graph runs 'torch.load', which is not on"),
    "a function of torch's insides": (
        targeting("torch.ops.aten.__class__.mro"),
        r"the graph runs 'torch.ops.aten.__class",
    ),
    "a method of our operators' home": (targeting("torch.ops.thinnet.name.upper"), r"thinnet::name.upper, which this"),
    "a loop without an end": (targeting("torch.ops.higher_order.while_loop"), r"'torch.ops.higher_order.while_loop'"),
    "an operator that swaps memory": (targeting("torch.ops.aten.set_.source_Tensor"), r"'torch.ops.aten.set_.source"),
    "an operator that resizes memory": (
        targeting("torch.ops.aten.resize_.default"),
        r"'torch.ops.aten.resize_.default'",
    ),
    "an operator that reads past memory": (
        targeting("torch.ops.aten._reshape_alias.default"),
        r"_reshape_alias.default'",
    ),
    "an operator that trusts indices": (
        targeting("torch.ops.aten.linalg_lu_solve.default"),
        r"linalg_lu_solve.default'",
    ),
    "an operator that writes elsewhere": (
        targeting("torch.ops.aten.add.out"),
        r"add.out', which writes to an argument",
    ),
    "an operator on text": (
        targeting("torch.ops.aten.split.str"),
        r"'torch.ops.aten.split.str', which writes to an|on",
    ),
    "an operator of a later thinnet": (
        targeting("torch.ops.thinnet.quantum_dropout.default"),
        r"thinnet::quantum_dropout.default, which this thinnet does not have; use the version that",
    ),
    "an operator of a later torch": (
        targeting("torch.ops.aten.linear.v9"),
        r"aten::linear.v9, which this torch .* does not",
    ),
    "an operator inside a nested graph": (targeting("torch.load", nested=True), r"as_graph.graph.nodes.*'torch.load'"),
    "a target that is a number": (setting(*NODE, "target", to=7), r"target: '7' is not text"),
    "an operator as an argument": (
        passing({"as_operator": "torch.load"}),
        r"as_operator: an operator as an argument cannot",
    ),
    "a custom object": (
        passing({"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
        r"as_custom_obj: a custom object cannot",
    ),
    "a dict of arguments": (passing({"as_string_to_argument": {}}), r"a dict of arguments cannot be loaded safely"),
    "an unknown kind of argument": (passing({"as_code": "1"}), r"\['as_code'\] is not one of as_none"),
    "two kinds of argument at once": (
        passing({"as_int": 1, "as_float": 1.0}),
        r"\['as_int', 'as_float'\] is not one of",
    ),
    "text for a number": (passing({"as_float": "1 + 1"}), r"as_float: '1 \+ 1' is not a float"),
    "a truth for a number": (passing({"as_int": True}), r"as_int: 'True' is not a int"),
    "a number without an end": (passing({"as_int": 1 << 70}), r"as_int: '1180591620717411303424' is not a int"),
    "a sparse layout": (passing({"as_layout": 1}), r"as_layout: a sparse or special layout is not read"),
    "another device": (
        passing({"as_device": {"type": "meta", "index": None}}),
        r"type: the device 'meta' is not known",
    ),
    "a graph's name that is code": (
        passing({"as_graph": {"name": "a;b", "graph": {}}}),
        r"as_graph.name: 'a;b' is not a plain name",
    ),
    "an argument's name that is code": (
        setting(*NODE, "inputs", 0, "name", to="x=f()"),
        r"name: 'x=f\(\)' is not a plain",
    ),
    "a node's name that is code": (setting(*NODE, "name", to="x\nf()"), r"name: 'x\\nf\(\)' is not a plain name"),
    "a name that is a keyword": (
        setting(*GRAPH, "inputs", 0, to={"as_tensor": {"name": "import"}}),
        r"'import' is not a",
    ),
    "a tensor's name that is code": (setting(*GRAPH, "tensor_values", "f()", to={}), r"'f\(\)' is not a plain name"),
    "a custom object among the inputs": (taking({"custom_obj": {}}), r"custom_obj: a custom object cannot be loaded"),
    "a token among the inputs": (taking({"token": {}}), r"token: an effect token cannot be loaded"),
    "a training step": (
        setting("graph_module", "signature", "output_specs", 0, to={"gradient_to_parameter": {}}),
        r"gradient_to_parameter: a training step cannot be loaded safely",
    ),
    "a parameter's path that is code": (
        taking({"parameter": {"arg": {"name": "p"}, "parameter_name": '"+f()+"'}}),
        r"parameter_name: '.*f\(\).*' is not the path of a module",
    ),
    "a module's path that is code": (
        setting("graph_module", "module_call_graph", 0, "fqn", to="a')"),
        r"fqn: .* is not the path of a module",
    ),
    "Python in a size": (measuring("__import__('os')"), r"expr_str: the symbolic expression .* is not arithmetic"),
    "an attribute in a size": (measuring("s0.func"), r"'s0.func' is not arithmetic on symbols"),
    "a power that never ends": (
        measuring("Pow(Integer(9), Pow(Integer(9), Integer(9)))"),
        r"is not arithmetic on symbols",
    ),
    "a tower of small powers": (measuring("Pow(Pow(Symbol('s0'), Integer(8)), Integer(8))"), r"is not arithmetic"),
    "a power of operators": (measuring("9**9**9"), r"'9\*\*9\*\*9' is not arithmetic on symbols"),
    "a float that is huge": (measuring("Float('1e999999', precision=53)"), r"is not arithmetic on symbols"),
    "a symbol's name that is code": (measuring("Symbol('f()')"), r"is not arithmetic on symbols"),
    "a long expression": (measuring("Add(" + "s0, " * 2000 + "s0)"), r"has 8\d+ characters and at most 4000"),
    "a deep expression": (measuring("(" * 1500 + "s0" + ")" * 1500), r"is not arithmetic on symbols"),
    "a hint that is text": (measuring("s0", "1"), r"hint.as_int: '1' is not a int"),
    "a range of code": (ranging("f()"), r"'f\(\)' does not name a size"),
    "a range that counts to a trillion": (ranging("u999999999999"), r"'u999999999999' does not name a size"),
    "a range from text": (ranging("s9", "1"), r"min_val: '1' is not a int"),
    "a type of numbers that is not known": (setting(*X, "dtype", to=99), r"dtype: '99' is not a ScalarType"),
    "a tensor that is sparse": (setting(*X, "layout", to=2), r"layout: a sparse or special layout"),
    "a class among the outputs": (
        nesting("out_spec", branch("transformers.ModelOutput", "{}", LEAF)),
        r"held by 'transformers.ModelOutput', which is no plain tuple, list or dict.*return a dict of tensors",
    ),
    "a named tuple among the outputs": (
        nesting("out_spec", branch("collections.namedtuple", '{"class_name": "os.stat"}', LEAF)),
        r"held by 'collections.namedtuple'",
    ),
    "an enumeration among the keys": (
        nesting("out_spec", branch("builtins.dict", '[{"__enum__": true, "fqn": "os:x", "name": "y"}]', LEAF)),
        r"held by 'builtins.dict', which is no plain",
    ),
    "more keys than values": (
        nesting("out_spec", branch("builtins.dict", '["a", "b"]', LEAF)),
        r"held by 'builtins.dict'",
    ),
    "a keyword input that is code": (
        nesting("in_spec", branch("builtins.tuple", "null", LEAF, branch("builtins.dict", '["x=f()"]', LEAF))),
        r"in_spec: 'x=f\(\)' is not a plain name",
    ),
    "a nesting of another version": (
        nesting("in_spec", "[2, {}]"),
        r"in_spec: a nesting of inputs or outputs of another",
    ),
    "a nesting that is no JSON": (nesting("in_spec", "[1, "), r"in_spec: the nesting is not plain JSON"),
    "a nesting without an end": (
        nesting("in_spec", f"[1, {DEEP * 3000}]{'}]' * 3000}"),
        r"nested deeper|is not plain JSON",
    ),
    "an unknown dialect": (setting("verifiers", to=["EVIL"]), r"\['EVIL'\] is not a dialect of torch.export"),
    "a graph without nodes": (dropping(*GRAPH, "nodes"), r"graph: 'nodes' is missing; export the network again"),
    "nodes that are no list": (setting(*GRAPH, "nodes", to={}), r"nodes: '\{\}' is not a list"),
    "a graph that is a list": (setting(*GRAPH, to=[]), r"graph: '\[\]' is not a dict"),
    "another schema": (setting("schema_version", "major", to=99), r"torch cannot read the program \(SerializeError: "),
    "a tensor from nowhere": (
        setting(*NODE, "inputs", 0, to={"name": "self", "arg": {"as_tensor": {"name": "nowhere"}}, "kind": 1}),
        r"torch cannot read the program \(\w+: .*\); export it again",
    ),
}


@pytest.mark.parametrize(("edit", "message"), GRAPHS.values(), ids=GRAPHS)
def test_a_graph_says_only_what_is_known_to_compute(edit: Edit, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match=message):
        loaded(tmp_path, forge.edited(forge.MODEL, edit))


def weight(**changes: Any) -> Edit:
    """Change what is said of a weight of 3 by 4 numbers of 4 bytes."""

    def edit(config: Any) -> None:
        payload = config["config"]["linear.weight"]
        for key, value in changes.items():
            (payload if key in payload else payload["tensor_meta"])[key] = value

    return edit


def whole(*values: Any) -> list[dict[str, Any]]:
    return [{"as_int": value} for value in values]


WEIGHTS: dict[str, tuple[Edit, str]] = {
    "a pickle": (weight(use_pickle=True), r"'linear.weight' is stored as a pickle, which can run any code"),
    "no shape": (weight(tensor_meta=None), r"'linear.weight' is stored as a pickle"),
    "another folder's entry": (weight(path_name="../constants/tensor_0"), r"'linear.weight' is stored as a pickle"),
    "an object's entry": (weight(path_name="custom_obj_0"), r"'linear.weight' is stored as a pickle"),
    "more rows than there are": (weight(sizes=whole(4, 4)), r"'linear.weight' reaches past the 48 bytes of its entry"),
    "a stride past the end": (weight(strides=whole(5, 1)), r"reaches past the 48 bytes"),
    "an offset past the end": (weight(storage_offset={"as_int": 1}), r"reaches past the 48 bytes"),
    "an offset before the start": (weight(storage_offset={"as_int": -1}), r"no whole numbers from 0"),
    "a stride backwards": (
        weight(strides=whole(-4, 1)),
        r"sizes, strides or an offset that are no whole numbers from 0",
    ),
    "a size below zero": (weight(sizes=whole(-3, 4)), r"no whole numbers from 0"),
    "a symbolic size": (weight(sizes=[{"as_expr": {"expr_str": "s0", "hint": None}}]), r"no whole numbers from 0"),
    "fewer strides than sizes": (weight(strides=whole(1)), r"reaches past the 48 bytes"),
    "wider numbers": (weight(dtype=8), r"reaches past the 48 bytes"),
    "numbers of no type": (weight(dtype=0), r"the type 0 of numbers is not known"),
    "one number a trillion times": (weight(sizes=whole(1 << 40), strides=whole(0)), r"spans \d+ bytes and at most"),
    "an entry that two types share": (
        weight(path_name="weight_1", dtype=1, sizes=whole(1, 1)),
        r"hold two types of number",
    ),
    "a path that is code": (lambda config: config["config"].update({'"+f()+"': {}}), r"is not the path of a module"),
}


@pytest.mark.parametrize(("edit", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_a_weight_lies_within_its_entry(edit: Edit, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match=message):
        loaded(tmp_path, forge.edited(forge.WEIGHTS, edit))


def test_an_empty_entry_does_not_fill_memory(tmp_path: Path) -> None:
    edit = weight(sizes=whole(1 << 40), strides=whole(1))
    path = json.loads(forge.honest()[forge.WEIGHTS])["config"]["linear.weight"]["path_name"]
    entries = {**forge.edited(forge.WEIGHTS, edit), f"data/weights/{path}": b""}
    with pytest.raises(UnsafeArchive, match=r"'linear.weight' reaches past the 0 bytes of its entry"):
        loaded(tmp_path, entries)


TEXTS: dict[str, tuple[bytes, str]] = {
    "a repeated key": (b'{"a": 1, "a": 2}', r"models/model.json is not plain JSON: a key is repeated"),
    "depth without an end": (b"[" * 200_000 + b"]" * 200_000, r"is not plain JSON: maximum recursion depth"),
    "no number": (b'{"a": NaN}', r"is not plain JSON: NaN is no number of JSON"),
    "a number of many digits": (b'{"a": ' + b"1" * 5000 + b"}", r"is not plain JSON: Exceeds the limit"),
    "half a text": (b'{"a": ', r"is not plain JSON: Expecting value"),
    "no text": (b"\xff\xfe\x00", r"is not plain JSON"),
    "a list": (b"[]", r"ExportedProgram: '\[\]' is not a dict"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
def test_the_json_is_plain(text: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match=message):
        loaded(tmp_path, {**forge.honest(), forge.MODEL: text})


def test_a_graph_nested_deeper_than_python_can_follow_is_refused(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"as_int": 1}
    for _ in range(60):
        node = forge.node("torch.ops.aten.relu.default", ("self", inner))
        graph = {"inputs": [], "outputs": [], "nodes": [node], "tensor_values": {}}
        inner = {"as_graph": {"name": "g", "graph": {**graph, "sym_int_values": {}, "sym_bool_values": {}}}}
    with pytest.raises(UnsafeArchive, match="ExportedProgram is nested deeper than any network is"):
        loaded(tmp_path, forge.edited(forge.MODEL, passing(inner)))


def test_fields_that_the_schema_does_not_have_never_reach_torch(tmp_path: Path) -> None:
    loaded(tmp_path, forge.edited(forge.MODEL, setting("evil", to="f()"), setting(*NODE, "evil", to={"a": [1]})))
