"""Weights reach the network by name and whole, and no file of them ever runs code."""

import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from service.errors import InvalidWeights
from service.weights import load_weights, read_weights

Weights = dict[str, Tensor]


class Net(nn.Module):
    """A small convolution, dropout and a head."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.25))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Wrapper(nn.Module):
    """A network whose own names begin with `model.`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


@pytest.fixture
def state() -> Weights:
    return dict(Net().state_dict())


def legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def prefixed(prefix: str, state: Weights) -> Weights:
    return {prefix + name: x for name, x in state.items()}


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "net.safetensors": save_file,
    "net.pt": torch.save,
    "net.pth": torch.save,
    "pytorch_model.bin": torch.save,
    "legacy.pth": legacy,
    "no_extension": torch.save,
    "misnamed.pt": save_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_comes_back_as_it_was_whatever_its_name(name: str, state: Weights, tmp_path: Path) -> None:
    WRITERS[name](state, tmp_path / name)

    assert_same(read_weights(tmp_path / name), state)


def test_a_lightning_checkpoint_gives_its_network(state: Weights, tmp_path: Path) -> None:
    checkpoint = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(prefixed("model.", state)),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"width": 4, "name": "net"},
        "loops": {},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")

    assert_same(read_weights(tmp_path / "last.ckpt"), state)


@pytest.mark.parametrize(
    "keys", [["state_dict"], ["model_state_dict"], ["model"], ["model", "state_dict"], ["generator"]]
)
def test_the_state_dict_is_found_inside_a_checkpoint(keys: list[str], state: Weights, tmp_path: Path) -> None:
    content: dict[str, Any] = state
    for key in reversed(keys):
        content = {key: content, "epoch": 1, "optimizer": {"state": {}, "lr": 0.1}}
    torch.save(content, tmp_path / "net.pt")

    assert_same(read_weights(tmp_path / "net.pt"), state)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.module."]
)
def test_what_wrappers_put_before_every_name_is_taken_off(prefix: str, state: Weights, tmp_path: Path) -> None:
    torch.save(prefixed(prefix, state), tmp_path / "net.pt")

    assert_same(read_weights(tmp_path / "net.pt"), state)


def test_what_compiling_a_part_puts_inside_names_is_taken_out(state: Weights, tmp_path: Path) -> None:
    torch.save({name.replace("body.", "body._orig_mod."): x for name, x in state.items()}, tmp_path / "net.pt")

    assert_same(read_weights(tmp_path / "net.pt"), state)


def test_a_prefix_that_only_some_names_carry_stays(state: Weights, tmp_path: Path) -> None:
    mixed = {**prefixed("model.", state), "loss.weight": torch.ones(3)}
    torch.save(mixed, tmp_path / "net.pt")

    assert_same(read_weights(tmp_path / "net.pt"), mixed)


def test_safetensors_without_its_package_names_the_install_command(
    state: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state, tmp_path / "net.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)

    with pytest.raises(InvalidWeights, match=r"pip install safetensors"):
        read_weights(tmp_path / "net.safetensors")


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("write", [torch.save, legacy, lambda content, path: path.write_bytes(pickle.dumps(content))])
@pytest.mark.parametrize("inside", [False, True])
def test_no_pickle_is_ever_run(
    write: Callable[[object, Path], Any], inside: bool, state: Weights, tmp_path: Path
) -> None:
    trap = Trap(tmp_path / "canary")
    write({"state_dict": state, "trap": trap} if inside else trap, tmp_path / "net.pt")

    with pytest.raises(InvalidWeights, match=r"posix.mkdir|a pickle that torch.save did not write"):
        read_weights(tmp_path / "net.pt")
    assert not (tmp_path / "canary").exists()


def test_the_trap_of_these_tests_does_close(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "canary")))

    assert (tmp_path / "canary").exists()


CURE = r'module = .*\n.*predictor = Predictor\.capture\(module, example\).*\n.*predictor\.save\("models/<name>"\)'


def write_onnx(path: Path) -> None:
    path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.3.0:\x10" + bytes(40))


def write_torchscript(path: Path) -> None:
    """Write what torch.jit.save lays out, without its deprecation warnings."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"net/{name}", b"\x80\x02}.")


def write_exported(path: Path) -> None:
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(2, 1, 5, 5),)), path)


def write_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", b"\x93NUMPY")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "whole.pt": (lambda path: torch.save(Net(), path), r"a whole pickled object \(\S*Net\), which runs code"),
    "whole_legacy.pt": (
        lambda path: legacy(nn.Linear(2, 3), path),
        r"whole pickled object \(torch.nn.modules.linear.Linear",
    ),
    "configured.ckpt": (
        lambda path: torch.save({"hyper_parameters": {"net": Net()}, "state_dict": {"w": torch.ones(1)}}, path),
        r"holds more than tensors \(\S*Net\)",
    ),
    "script.pt": (write_torchscript, "a TorchScript archive"),
    "exported.pt2": (write_exported, "an exported program, from which dropout may be gone"),
    "net.onnx": (write_onnx, "an ONNX graph"),
    "renamed_onnx.bin": (write_onnx, "an ONNX graph"),
    "arrays.npz": (write_arrays, "a zip archive without torch's weights"),
    "forest.pkl": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a pickle that torch.save did not write"),
    "net.gguf": (lambda path: path.write_bytes(b"GGUF" + bytes(20)), "a GGUF file"),
    "net.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20)), "an HDF5 file, as Keras writes"),
    "model.safetensors.index.json": (lambda path: path.write_text(json.dumps({"weight_map": {}})), "sharded weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_more_than_tensors_is_refused_by_its_kind_with_the_cure(name: str, tmp_path: Path) -> None:
    write, what = REFUSED[name]
    write(tmp_path / name)

    with pytest.raises(InvalidWeights, match=f"(?s){what}.*{CURE}"):
        read_weights(tmp_path / name)


FOLDERS = {
    "MLmodel": "an MLflow model, which is loaded by unpickling",
    "config.json": r"a pretrained model's directory \(give a file inside it: model.safetensors\)",
    "readme": r"a directory \(give a file inside it: model.safetensors\)",
}


@pytest.mark.parametrize("marker", FOLDERS)
def test_a_directory_is_refused_by_what_it_is_with_the_cure(marker: str, tmp_path: Path) -> None:
    (tmp_path / marker).write_text("{}")
    (tmp_path / "model.safetensors").touch()

    with pytest.raises(InvalidWeights, match=f"(?s){FOLDERS[marker]}.*{CURE}"):
        read_weights(tmp_path)


def cut(write: Callable[[Any, Path], None]) -> Callable[[Path, Weights], None]:
    def write_half(path: Path, state: Weights) -> None:
        write(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write_half


DAMAGED: dict[str, tuple[Callable[[Path, Weights], Any], str]] = {
    "archive": (cut(torch.save), "is damaged or not a file of weights"),
    "legacy": (cut(legacy), "is damaged or not a file of weights"),
    "safetensors": (cut(save_file), "is damaged or not a file of weights"),
    "noise": (lambda path, _: path.write_bytes(b"\x01\x02\x03 noise" * 9), "is damaged or not a file of weights"),
    "protocol": (
        lambda path, state: torch.save(state, path, pickle_protocol=4),
        r"is damaged .*\(its pickle is not as torch.save writes it\)",
    ),
    "empty": (lambda path, _: path.touch(), "is empty; copy it again"),
    "missing": (lambda path, _: None, "cannot be read: No such file"),
    "lfs": (
        lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "git lfs pull",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_gives_one_clear_line(kind: str, state: Weights, tmp_path: Path) -> None:
    write, what = DAMAGED[kind]
    write(tmp_path / "net.pt", state)

    with pytest.raises(InvalidWeights, match=f"net.pt {what}" if kind != "lfs" else what) as caught:
        read_weights(tmp_path / "net.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"epoch": 3, "notes": "x"}, "no state dict: its keys are epoch, notes"),
        ({}, "no state dict: it is an empty dict"),
        (torch.ones(2), "no state dict: it holds one Tensor"),
        ({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, "no state dict: its keys are a, b"),
    ],
)
def test_a_file_without_a_single_state_dict_tells_what_it_has(content: object, what: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")

    with pytest.raises(InvalidWeights, match=what):
        read_weights(tmp_path / "net.pt")


def test_loaded_weights_are_the_networks_own(state: Weights) -> None:
    net = Net()
    load_weights(net, state)

    assert_same(dict(net.state_dict()), state)


def test_half_precision_weights_are_loaded_into_a_float_network(state: Weights) -> None:
    net = Net()
    load_weights(net, {name: x.half() if x.is_floating_point() else x for name, x in state.items()})

    torch.testing.assert_close(net.head.weight.detach(), state["head.weight"], rtol=1e-3, atol=1e-3)


def test_names_that_the_network_itself_begins_with_model_fit_after_reading(tmp_path: Path) -> None:
    trained, net = Wrapper(), Wrapper()
    torch.save(trained.state_dict(), tmp_path / "net.pt")

    assert load_weights(net, read_weights(tmp_path / "net.pt")) == ()
    assert_same(dict(net.state_dict()), dict(trained.state_dict()))


def test_what_stands_beside_the_network_in_a_training_wrapper_is_left_out_and_named(state: Weights) -> None:
    net = Net()

    assert load_weights(net, {**prefixed("model.", state), "loss.weight": torch.ones(3)}) == ("loss.weight",)
    assert_same(dict(net.state_dict()), state)


def test_what_stands_beside_the_network_without_a_wrapper_is_refused(state: Weights) -> None:
    with pytest.raises(InvalidWeights, match=r"1 unexpected in the file: loss\.weight"):
        load_weights(Net(), {**state, "loss.weight": torch.ones(3)})


def test_every_kind_of_mismatch_is_told_in_one_error(state: Weights) -> None:
    state["stray"] = state.pop("head.bias")
    state["head.weight"] = torch.ones(5, 4)
    state["body.0.weight"] = state["body.0.weight"].to(torch.int8)

    with pytest.raises(InvalidWeights, match="not this network's") as caught:
        load_weights(Net(), state)
    assert str(caught.value).splitlines()[1:] == [
        "    1 missing from the file: head.bias",
        "    1 unexpected in the file: stray",
        "    2 of another shape or type: body.0.weight is int8 [4, 1, 3, 3], the network has float32 [4, 1, 3, 3], "
        "head.weight is float32 [5, 4], the network has float32 [3, 4]",
        "    build the network with the arguments that it was trained with",
    ]


def test_long_lists_of_names_are_cut_with_their_count() -> None:
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))

    with pytest.raises(InvalidWeights, match=r"18 missing from the file: 1\.weight.*5\.bias, and 8 more"):
        load_weights(deep, {name: x for name, x in deep.state_dict().items() if name.startswith("0.")})


@pytest.mark.parametrize(
    ("net", "rename", "hint"),
    [
        (Net(), lambda name: f"backbone.{name}", "every name fits without 'backbone.'"),
        (nn.Sequential(OrderedDict(encoder=Net())), lambda name: name, "every name fits with 'encoder.' in front"),
    ],
)
def test_an_unusual_prefix_is_hinted_at(
    net: nn.Module, rename: Callable[[str], str], hint: str, state: Weights
) -> None:
    with pytest.raises(InvalidWeights, match=hint):
        load_weights(net, {rename(name): x for name, x in state.items()})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight


def test_a_tied_weight_may_be_given_once() -> None:
    net = Tied()
    load_weights(net, {"embedding.weight": torch.ones(4, 3)})

    assert torch.equal(net.head.weight.detach(), torch.ones(4, 3))


def test_batch_counts_may_be_missing(state: Weights) -> None:
    assert load_weights(Net(), {name: x for name, x in state.items() if "num_batches" not in name}) == ()


def test_renamings_of_torchs_own_layers_are_honoured() -> None:
    old, net = nn.Linear(2, 3), nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    g, v = torch.rand(3, 1), torch.rand(3, 2)
    load_weights(net, {"weight_g": g, "weight_v": v, "bias": old.bias.detach()})

    torch.testing.assert_close(net.weight.detach(), g * v / v.norm(dim=1, keepdim=True))
