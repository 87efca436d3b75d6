"""Files that run code when torch alone loads them, each proven to: with thinnet they do not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import pytest
import torch

from service.errors import UnsafeArchive
from service.graph.archive import load_program

Attack = Callable[[Path], forge.Entries]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def written(tmp_path: Path, entries: forge.Entries) -> Path:
    path = tmp_path / "program.pt2"
    path.write_bytes(forge.packed(entries))
    return path


def pickled_weight(canary: Path) -> forge.Entries:
    def flag(config: Any) -> None:
        config["config"]["linear.weight"]["use_pickle"] = True

    entry = json.loads(forge.honest()[forge.WEIGHTS])["config"]["linear.weight"]["path_name"]
    return {**forge.edited(forge.WEIGHTS, flag), f"data/weights/{entry}": forge.pickled(canary)}


def pickled_constant(canary: Path) -> forge.Entries:
    def flag(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    return {**forge.edited(forge.CONSTANTS, flag), "data/constants/tensor_0": forge.pickled(canary)}


def opaque_object(canary: Path) -> forge.Entries:
    def add(config: Any) -> None:
        config["config"]["evil"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    return {**forge.edited(forge.CONSTANTS, add), "data/constants/opaque_obj_0": forge.plain_pickle(canary)}


def weights_of_an_old_torch(canary: Path) -> forge.Entries:
    return {**forge.honest(), "data/weights/model.pt": forge.pickled(canary)}


def constants_of_an_old_torch(canary: Path) -> forge.Entries:
    return {**forge.honest(), "data/constants/model.pt": forge.pickled(canary)}


def python_in_a_size(canary: Path) -> forge.Entries:
    def change(model: Any) -> None:
        sizes = forge.graph_of(model)["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = forge.python(canary)

    return forge.edited(forge.MODEL, change)


def python_in_a_name(canary: Path) -> forge.Entries:
    name = json.dumps(f"spare={forge.python(canary)}").encode()
    return {**forge.honest(), forge.MODEL: forge.honest()[forge.MODEL].replace(b'"spare"', name)}


def import_in_a_nesting(canary: Path) -> forge.Entries:
    (canary.parent / "imported_by_a_nesting.py").write_text(f"{forge.python(canary)}\n")
    context = json.dumps({"__enum__": True, "fqn": "imported_by_a_nesting:Enum", "name": "x"})

    def change(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        leaf = {"type": None, "context": None, "children_spec": []}
        tree = {"type": "builtins.tuple", "context": context, "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([1, tree])

    return forge.edited(forge.MODEL, change)


WHILE_LOADING: dict[str, tuple[Attack, str]] = {
    "a pickled weight": (pickled_weight, r"'linear.weight' is stored as a pickle.*export plain tensors"),
    "a pickled constant": (pickled_constant, r"'lifted_tensor_0' is stored as a pickle"),
    "an opaque object": (opaque_object, r"opaque_obj_0' is not a network's weights or graph"),
    "weights of an old torch": (weights_of_an_old_torch, r"'data/weights/model.pt' is not a network's weights"),
    "constants of an old torch": (constants_of_an_old_torch, r"'data/constants/model.pt' is not a network's weights"),
    "Python in a size": (python_in_a_size, r"expr_str: the symbolic expression .* is not arithmetic"),
    "Python in a name": (python_in_a_name, r"name: .spare=open.* is not a plain name"),
    "an import in a nesting": (import_in_a_nesting, r"held by 'builtins.tuple', which is no plain tuple"),
}


@pytest.mark.parametrize(("attack", "message"), WHILE_LOADING.values(), ids=WHILE_LOADING)
def test_what_torch_would_run_while_loading_is_refused_and_not_run(
    attack: Attack, message: str, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(canary.parent)
    path = written(canary.parent, attack(canary))
    assert forge.fires(path.read_bytes(), canary), "torch alone runs it, or this test would prove nothing"
    sys.modules.pop("imported_by_a_nesting", None)
    with pytest.raises(UnsafeArchive, match=message):
        load_program(path)
    assert not canary.exists()


def file_written_by_an_operator(canary: Path) -> forge.Entries:
    return forge.edited(forge.MODEL, lambda model: forge.write_file(forge.graph_of(model), canary))


def file_written_in_a_nested_graph(canary: Path) -> forge.Entries:
    return forge.edited(forge.MODEL, lambda model: forge.write_file(forge.nested_graph_of(model), canary))


def torch_function(canary: Path) -> forge.Entries:
    def change(model: Any) -> None:
        argument = ("name", {"as_string": str(canary)})
        forge.graph_of(model)["nodes"].append(forge.node("torch.os.mkdir", argument))

    return forge.edited(forge.MODEL, change)


WHEN_RUN: dict[str, tuple[Attack, str]] = {
    "a file written by an operator": (file_written_by_an_operator, r"nodes\[\d+\].target: the graph runs .*from_file"),
    "a file written in a nested graph": (file_written_in_a_nested_graph, r"as_graph.*the graph runs .*from_file"),
}


@pytest.mark.parametrize(("attack", "message"), WHEN_RUN.values(), ids=WHEN_RUN)
def test_what_torch_would_run_with_the_network_is_refused(attack: Attack, message: str, canary: Path) -> None:
    path = written(canary.parent, attack(canary))
    assert forge.fires(path.read_bytes(), canary, run=True), "torch alone runs it, or this test would prove nothing"
    with pytest.raises(UnsafeArchive, match=message):
        load_program(path)
    assert not canary.exists()


def test_a_function_of_torch_that_is_no_operator_is_refused(canary: Path) -> None:
    with pytest.raises(UnsafeArchive, match=r"the graph runs 'torch.os.mkdir', which is not on thinnet's list"):
        load_program(written(canary.parent, torch_function(canary)))


def test_pickled_sample_inputs_are_never_opened(canary: Path) -> None:
    entries = {**forge.honest(), forge.SAMPLE_INPUTS: forge.pickled(canary)}
    path = written(canary.parent, entries)
    assert forge.fires(path.read_bytes(), canary), "torch alone runs it, or this test would prove nothing"
    program = load_program(path)
    assert program.example_inputs is None
    assert program.module()(*forge.example()).shape == (2, 3)
    assert not canary.exists()


def test_python_in_the_guards_is_left_out(canary: Path) -> None:
    def change(model: Any) -> None:
        model["guards_code"] = [forge.python(canary)]

    path = written(canary.parent, forge.edited(forge.MODEL, change))
    assert forge.fires(path.read_bytes(), canary, run=True), "torch alone runs it, or this test would prove nothing"
    load_program(path).module()(*forge.example())
    assert not canary.exists()


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, forge.honest())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was opened")

    for place in ("torch.load", "torch.serialization._load", "torch.serialization._legacy_load", "torch.jit.load"):
        monkeypatch.setattr(place, refuse)
    for place in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(f"pickle.{place}", refuse)
    program = load_program(path)
    assert torch.equal(program.module()(*forge.example()), program.module()(*forge.example()))
