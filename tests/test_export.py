"""A factory, weights and a shape become a model folder that answers as the network does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from service import Predictor
from service.errors import InvalidFactory, InvalidInput, InvalidModelFolder, InvalidPlan, InvalidWeights
from service.example import parse_example
from service.export import Exported, export_folder
from service.factory import build_module
from service.folder import read_card
from service.signature import Activation, Task

SOURCE = """
import torch
from torch import nn


def build(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.25), nn.Linear(width * 9, 3))


class Digits(nn.Module):
    @classmethod
    def small(cls):
        return build()


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.drop, self.head = nn.Embedding(2, 3), nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, tokens, weight):
        return self.head(self.drop(self.embedding(tokens) * weight[..., None]).mean(1))


class Fixed(nn.Module):
    def forward(self, x):
        return x * 2.0


ready = mlp()
nothing = None
number = 3


def crash():
    raise RuntimeError("no such width")


def leave():
    raise SystemExit(1)


def pair():
    return mlp(), 3


def choose():
    return Digits
"""


@pytest.fixture(autouse=True)
def _nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the current directory hold a package `nets`, and forget it afterwards."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").touch()
    (tmp_path / "nets" / "small.py").write_text(SOURCE)
    (tmp_path / "nets" / "broken.py").write_text("import torch\nvalue = 1 / 0\n")
    (tmp_path / "nets" / "needy.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "nets" / "untidy.py").write_text("def build(:\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "nets"]:
        del sys.modules[name]


@pytest.fixture
def trained(tmp_path: Path) -> nn.Module:
    """A network of the factory `nets.small:build` whose weights are in `net.pt`."""
    module = build_module("nets.small:build")
    torch.save(module.state_dict(), tmp_path / "net.pt")
    return module.eval()


@pytest.mark.parametrize(
    "factory", ["nets.small:build", "nets.small:Digits.small", "nets.small:Words", "nets.small:ready"]
)
def test_functions_classes_their_methods_and_modules_give_a_network(factory: str) -> None:
    assert isinstance(build_module(factory), nn.Module)


def test_a_factory_takes_its_arguments() -> None:
    built = build_module("nets.small:build", {"width": 7})

    assert built.get_parameter("0.weight").shape == (7, 1, 3, 3)


@pytest.mark.parametrize(
    ("factory", "what"),
    [
        ("nets.small", r"names no factory; write package\.module:factory"),
        ("nets.small:", "names no factory"),
        ("netz.small:build", "there is no module 'netz'"),
        ("nets.smal:build", "there is no module 'nets.smal'"),
        ("nets.small:biuld", "nets.small has no 'biuld'; did you mean 'build'"),
        ("nets.small:zzz", "nets.small has no 'zzz'; it has .*build"),
        ("nets.small:Digits.smal", "Digits has no 'smal'; did you mean 'small'"),
        ("nets.small:nothing", "is None and takes no arguments"),
        ("nets.small:number", "is an int and takes no arguments"),
        (
            "nets.small:crash",
            r"raised when called with \(\): RuntimeError: no such width \(at small.py:\d+: raise Runtime",
        ),
        ("nets.small:leave", r"SystemExit: 1 \(at small.py:\d+"),
        ("nets.small:pair", "returned a tuple; return the nn.Module itself"),
        ("nets.small:choose", "returned the class Digits"),
        (
            "nets.broken:build",
            r"importing nets.broken failed: ZeroDivisionError: division by zero \(at broken.py:2: value",
        ),
        ("nets.needy:build", "importing nets.needy failed: ModuleNotFoundError: .*a_package_that_nobody_has"),
        ("nets.untidy:build", r"importing nets.untidy failed: SyntaxError: .*\(untidy.py, line 1\)"),
    ],
)
def test_a_factory_that_gives_no_network_is_refused_by_its_reason(factory: str, what: str) -> None:
    with pytest.raises(InvalidFactory, match=what):
        build_module(factory)


@pytest.mark.parametrize(
    ("factory", "what"), [("build", "widht=5.*unexpected keyword"), ("ready", "takes no arguments")]
)
def test_arguments_that_do_not_fit_are_told(factory: str, what: str) -> None:
    with pytest.raises(InvalidFactory, match=what):
        build_module(f"nets.small:{factory}", {"widht": 5})


@pytest.mark.parametrize(
    ("spec", "shape", "dtype"),
    [
        ("3x32x32", (2, 3, 32, 32), torch.float32),
        ("1,8,8", (2, 1, 8, 8), torch.float32),
        ("3 × 4", (2, 3, 4), torch.float32),
        ("16", (2, 16), torch.float32),
        ("int64:16", (2, 16), torch.int64),
        ("float64:", (2,), torch.float64),
    ],
)
def test_a_shape_becomes_two_rows(spec: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    (example,) = parse_example([spec])  # a tuple: without names

    assert isinstance(example, torch.Tensor)
    assert (tuple(example.shape), example.dtype) == (shape, dtype)


def test_named_examples_become_keyword_inputs_with_integers_0_and_1() -> None:
    example = parse_example(["tokens:int64:64", "weight:64"])

    assert isinstance(example, dict)
    assert list(example) == ["tokens", "weight"]
    assert example["tokens"].unique().tolist() == [0, 1]
    assert 0.5 < float(example["weight"].std()) < 1.5


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        ([], "an example is missing"),
        (["3x0"], "'3x0' for a shape, which is not whole numbers above 0"),
        (["-1x3"], "'-1x3' for a shape"),
        (["wide"], "'wide' for a shape"),
        ([""], "'' for a shape"),
        (["x:int46:3"], "has no dtype 'int46'; known are float16"),
        (["a:int64:3:4"], "has more than name, dtype and shape"),
        (["a b:3"], "has 'a b' for a name"),
        (["a:3", "4"], "give every input a name of its own, or none of them"),
        (["a:3", "a:4"], "give every input a name of its own"),
        (["999999999x999"], "past the limit of 268435456"),
    ],
)
def test_an_example_that_cannot_be_read_is_refused_by_its_reason(specs: list[str], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        parse_example(specs)


def export_digits(**more: object) -> Exported:
    return export_folder("nets.small:build", "models/digits", ["1x5x5"], "net.pt", **more)  # type: ignore[arg-type] # as given


@pytest.mark.usefixtures("trained")
def test_an_export_is_a_model_folder_with_what_was_said_of_it() -> None:
    made = export_digits(
        task="classification", labels=["a", "b", "c"], description="Digits.", score={"accuracy": 0.9}, passes=30, seed=4
    )
    card = read_card(Path("models/digits"))

    assert made.folder == Path("models/digits/1")
    assert (card.name, card.version, card.description, card.passes, card.seed) == ("digits", 1, "Digits.", 30, 4)
    assert card.score == {"accuracy": 0.9}
    assert card.inputs[0].shape == (1, 5, 5)
    assert (card.outputs[0].task, card.outputs[0].activation) == (Task.CLASSIFICATION, Activation.SOFTMAX)
    assert card.outputs[0].labels == ("a", "b", "c")


@pytest.mark.usefixtures("trained")
def test_an_export_tells_the_sites_and_which_are_active() -> None:
    made = export_digits()
    dropout = next(site for site in made.sites if site.name == "3")

    assert (dropout.kind, dropout.shape, dropout.variant, dropout.p) == ("activation", (36,), "bernoulli", 0.25)
    assert made.active == ("3",)
    assert (made.lost, made.notes) == ((), ())


def test_an_exported_folder_answers_as_the_trained_module_does(trained: nn.Module) -> None:
    export_digits()
    x = torch.randn(3, 1, 5, 5)
    expected = Predictor.capture(trained, torch.randn(2, 1, 5, 5)).predict(x, passes=20, seed=3)
    found = Predictor.load("models/digits").predict(x, passes=20, seed=3)

    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.variance, expected.variance)


@pytest.mark.usefixtures("trained")
def test_a_second_export_is_a_second_version() -> None:
    export_digits()

    assert export_digits().folder == Path("models/digits/2")


def test_named_inputs_are_exported_under_their_names() -> None:
    export_folder("nets.small:Words", "models/words", ["tokens:int64:6", "weight:6"], no_weights=True)

    assert [one.name for one in read_card(Path("models/words")).inputs] == ["tokens", "weight"]


def test_weights_of_the_factorys_own_are_noted() -> None:
    made = export_folder("nets.small:build", "models/digits", ["1x5x5"], no_weights=True)

    assert "that nets.small:build made itself" in made.notes[0]


def test_weights_left_out_are_noted(trained: nn.Module) -> None:
    state = {f"model.{name}": x for name, x in trained.state_dict().items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(3)}}, "net.pt")

    assert export_digits().notes == ("left out, beside the network: loss.weight",)


def test_a_network_without_dropout_is_exported_and_says_which_variants_would_make_it_random() -> None:
    made = export_folder("nets.small:mlp", "models/mlp", ["4"], no_weights=True)

    assert made.active == ()
    assert "nothing in this network is random as it was trained: name a variant" in made.notes[-1]
    assert "dropconnect" in made.notes[-1]
    assert read_card(Path("models/mlp")).version == 1


def test_a_network_where_nothing_can_be_random_is_exported_and_says_so() -> None:
    made = export_folder("nets.small:Fixed", "models/fixed", ["x:int64:4"], no_weights=True)

    assert made.sites == ()
    assert "nothing in this network is random as it was trained: no variant fits any of its sites" in made.notes[-1]


def test_a_variant_becomes_the_models_own() -> None:
    made = export_folder("nets.small:mlp", "models/mlp", ["4"], no_weights=True, variant="dropconnect")

    assert set(made.active) == {"0.weight", "2.weight"}
    assert read_card(Path("models/mlp")).variant == "dropconnect"


@pytest.mark.usefixtures("trained")
def test_a_failed_export_leaves_no_folder() -> None:
    with pytest.raises(InvalidPlan, match="there is no variant 'dropconect'"):
        export_digits(variant="dropconect")
    assert not Path("models").exists()


@pytest.mark.parametrize(
    ("more", "error", "what"),
    [
        ({}, InvalidWeights, "no weights are given; give a file of them, or --no-weights"),
        ({"weights": "net.pt", "no_weights": True}, InvalidWeights, "both net.pt and --no-weights are given"),
        ({"no_weights": True, "task": "clasification"}, InvalidInput, "no task 'clasification'; the tasks are class"),
        ({"no_weights": True, "folder": "models/my digits"}, InvalidModelFolder, "is not a model's name"),
        (
            {"no_weights": True, "examples": ["1x4x4"]},
            InvalidInput,
            r"does not run on the example \(1: float32 \[2, 1, 4",
        ),
        (
            {"no_weights": True, "examples": ["y:1x5x5"]},
            InvalidInput,
            r"example \(y: .*unexpected keyword argument 'y'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    more: dict[str, object], error: type[Exception], what: str
) -> None:
    given: dict[str, object] = {"folder": "models/digits", "examples": ["1x5x5"], **more}

    with pytest.raises(error, match=what):
        export_folder("nets.small:build", **given)  # type: ignore[arg-type] # as given
    assert not Path("models").exists()
