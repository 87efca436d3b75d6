"""What is written to model.toml is read back as the same; what is wrong in it is refused with key and cure."""

import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.datasheet import ACTIVATIONS, DTYPES, FLOATING, Datasheet, datasheet_text, parse_datasheet
from service.errors import InvalidModelFolder
from service.signature import Activation, Input, Output, Task

MINIMAL = """
[[inputs]]
name = "x"
shape = [3]

[[outputs]]
name = "y"
task = "regression"
shape = [1]
"""
MEASURED = (Task.REGRESSION, Task.GAUSSIAN)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9._-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SHAPES = st.lists(st.sampled_from([-1, 1, 2, 5]), max_size=3).map(tuple)


def lists(size: int, items: st.SearchStrategy[Any], unique: bool = False) -> st.SearchStrategy[tuple[Any, ...]]:
    """Draw so many items, or none; any number where the size varies."""
    least, most = (size, size) if size >= 0 else (0, 3)
    return st.just(()) | st.lists(items, min_size=least, max_size=most, unique=unique).map(tuple)


@st.composite
def inputs(draw: st.DrawFn) -> Input:
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    features = draw(lists(shape[-1], TEXTS, unique=True)) if shape else ()
    units = draw(lists(shape[-1], TEXTS)) if shape else ()
    mean: tuple[float, ...] = ()
    if dtype in FLOATING and draw(st.booleans()):
        count = draw(st.sampled_from([1, abs(shape[-1]) if shape else 1]))
        mean = draw(st.tuples(*[NUMBERS] * count))
    std = draw(st.tuples(*[POSITIVE] * len(mean)))
    return Input(draw(NAMES), dtype, shape, features, units, mean, std)


@st.composite
def outputs(draw: st.DrawFn) -> Output:
    task = draw(st.sampled_from(Task))
    shape = draw(SHAPES)
    if task is Task.GAUSSIAN:
        shape = (*shape, draw(st.sampled_from([-1, 2, 6])))
    elif task not in MEASURED:
        shape = (*shape, 3)
    axis = draw(st.sampled_from([-1, len(shape)])) if task not in MEASURED else -1
    size = shape[-1] // 2 if task is Task.GAUSSIAN and shape[-1] > 0 else shape[-1] if shape else 1
    one = Output(
        draw(NAMES),
        task,
        shape,
        draw(st.sampled_from(ACTIVATIONS[task])),
        draw(lists(size, TEXTS, unique=True)),
        axis,
        unit=draw(TEXTS),
    )
    if task in MEASURED:
        one = replace(one, scale=draw(POSITIVE), shift=draw(NUMBERS), exp=draw(st.booleans()))
    if task is Task.REGRESSION:
        one = replace(one, noise_precision=draw(st.none() | POSITIVE))
    return one


def by_name(one: Input | Output) -> str:
    return one.name


SHEETS = st.builds(
    Datasheet,
    st.lists(inputs(), min_size=1, max_size=3, unique_by=by_name).map(tuple),
    st.lists(outputs(), min_size=1, max_size=3, unique_by=by_name).map(tuple),
    TEXTS,
    st.integers(2, 10_000),
    st.integers(0, 2**63 - 1),
    st.sampled_from(["trained", "gaussian", "dropconnect-sampled"]),
    st.dictionaries(st.text(string.printable, max_size=10), NUMBERS, max_size=3),
)


@given(SHEETS)
def test_what_is_written_is_read_back_as_the_same(sheet: Datasheet) -> None:
    assert parse_datasheet(datasheet_text(sheet).encode(), "model.toml") == sheet


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_as_a_model_folder(content: bytes) -> None:
    refused(content)


TOML_PIECES = [*MINIMAL.split(), "[defaults]", "[score]", "passes", "seed", "mean", "std", "=", "1e400", "nan", "inf"]
TOML_PIECES += ["\n", "\n", "0x1", "-1", "9" * 400, "{}", "[]", "''", "."]


@given(st.lists(st.sampled_from(TOML_PIECES), max_size=40))
def test_any_toml_is_read_or_refused_as_a_model_folder(pieces: list[str]) -> None:
    refused(" ".join(pieces).encode())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["name", "task", "shape", "labels", "class_axis", "scale", "shift", "exp", "noise_precision", "unit"]


@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_is_read_or_refused_as_a_model_folder(key: str, value: object) -> None:
    refused(f"{MINIMAL}\n{key} = {toml(value)}".replace(f'{key} = "y"\n', "").encode())


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(char if char.isalnum() and char.isascii() else "_" for char in value) + '"'
    return "0" if value is None else repr(value).lower()


def refused(content: bytes) -> None:
    try:
        parse_datasheet(content, "model.toml")
    except InvalidModelFolder as error:
        assert str(error).startswith("model.toml")  # noqa: PT017 # reading it is as good


def test_the_least_that_a_file_may_say() -> None:
    sheet = parse_datasheet(MINIMAL.encode(), "model.toml")

    assert sheet == Datasheet((Input("x", shape=(3,)),), (Output("y", shape=(1,)),))


def test_a_seed_beyond_tomls_own_range_is_refused_when_written_too() -> None:
    sheet = Datasheet((Input("x", shape=(3,)),), (Output("y", shape=(1,)),), passes=1)

    with pytest.raises(InvalidModelFolder, match=r"the datasheet to write: defaults.passes = 1 is out of range"):
        datasheet_text(sheet)


INPUT, OUTPUT = 'name = "x"\nshape = [3]', 'name = "y"\ntask = "regression"\nshape = [1]'


def changed(old: str, new: str) -> str:
    assert old in MINIMAL
    return MINIMAL.replace(old, new)


def with_input(line: str) -> str:
    return changed(INPUT, f"{INPUT}\n{line}")


def with_output(line: str, task: str = "regression", shape: str = "[1]") -> str:
    return changed(OUTPUT, f'name = "y"\ntask = "{task}"\nshape = {shape}\n{line}')


REFUSALS = {
    "x =": "is not TOML: .*; correct it there",
    "": r"inputs is missing; add one \[\[inputs\]\] for each",
    changed(OUTPUT, "").replace("[[outputs]]", ""): r"outputs is missing; add one \[\[outputs\]\]",
    changed("[[outputs]]", "[outputs]"): r"outputs = .* is not a list of tables, \[\[outputs\]\]; write",
    "inputz = 1" + MINIMAL: "inputz is not a known key; did you mean 'inputs'",
    "zzz = 1" + MINIMAL: "zzz is not a known key; known are defaults, description, ",
    "description = 1" + MINIMAL: "description = 1 is not a string; write a string",
    "defaults = 1" + MINIMAL: r"defaults = 1 is not a table, \[defaults\]",
    f"{MINIMAL}[defaults]\npasses = 1": "defaults.passes = 1 is out of range; give 2 to 10000",
    f"{MINIMAL}[defaults]\npasses = 10001": "defaults.passes = 10001 is out of range",
    f"{MINIMAL}[defaults]\npasses = true": "defaults.passes = True is not a whole number",
    f"{MINIMAL}[defaults]\nseed = -1": "defaults.seed = -1 is negative; give 0 or more",
    f"{MINIMAL}[defaults]\nvariant = ''": "defaults.variant = '' is not a variant's name",
    f"{MINIMAL}[defaults]\nrate = 0.5": "defaults.rate is not a known key",
    f"{MINIMAL}[score]\nnll = nan": "score.nll = nan is not a finite number",
    f"{MINIMAL}[score]\nnll = 'low'": "score.nll = 'low' is not a finite number",
    MINIMAL + MINIMAL: "inputs has 'x' 2 times; give each a name of its own",
    changed('name = "x"', ""): r"inputs\[0\].name is missing; add it",
    changed('"x"', '"a b"'): r"inputs\[0\].name = 'a b' is not a name; give a letter",
    changed("shape = [3]", ""): r"inputs\[0\].shape is missing; add it",
    changed("[3]", "[0]"): r"inputs\[0\].shape = \[0\] has a size below 1",
    changed("[3]", "[true]"): r"inputs\[0\].shape = \[True\] is not a list of whole numbers",
    with_input('dtype = "complex64"'): r"inputs\[0\].dtype = 'complex64' cannot be served; give one of float16",
    with_input('features = ["a"]'): r"inputs\[0\].features has 1 entries for shape \[3\]",
    with_input('features = ["a", "a", "b"]'): r"inputs\[0\].features names one feature twice",
    with_input('units = ["a"]'): r"inputs\[0\].units has 1 entries for shape \[3\]",
    with_input("mean = [1]"): r"inputs\[0\].std has 0 entries and mean has 1; give both",
    with_input(
        "mean = [1, 2]\nstd = [1, 2]"
    ): r"inputs\[0\].mean has 2 entries for shape \[3\]; give 1, or one for each",
    with_input("mean = [1]\nstd = [0]"): r"inputs\[0\].std has 0.0, and must be above 0",
    with_input('dtype = "int64"\nmean = [1]\nstd = [1]'): r"inputs\[0\].mean cannot standardise int64",
    with_output("", task="guess"): r"outputs\[0\].task = 'guess' is not known; give one of classification, ",
    with_output('activation = "softmax"', task="gaussian", shape="[2]"): "activation = 'softmax' does not fit the task",
    with_output('activation = "sigmoid"', task="classification"): "activation = 'sigmoid' does not fit the task",
    with_output("class_axis = 0", task="classification"): "class_axis = 0 is no axis of a row; the batch is 0",
    with_output("class_axis = 2", task="classification"): "class_axis = 2 is no axis of a row",
    with_output("", task="classification", shape="[]"): "class_axis = -1 is no axis of a row",
    with_output('labels = ["a", "b"]'): r"labels has 2 names where shape \[1\] has 1",
    with_output('labels = ["a", "a"]', shape="[2]"): "labels has one name twice",
    with_output("scale = 0"): "scale = 0.0 is not above 0",
    with_output("scale = 2", task="multilabel"): r"scale \(or shift, or exp\) does not fit the task multilabel",
    f"{MINIMAL}[defaults]\nseed = {1 << 64}": "defaults.seed = 18446744073709551616 is not a whole number",
    f"{MINIMAL}[defaults]\nseed = 0x{'f' * 9999}": "defaults.seed = a number of too many digits is not a whole number",
    with_output(f"scale = {'9' * 400}"): r"outputs\[0\].scale = 9+… is not a finite number",
    with_output("exp = 1"): "exp = 1 is not true or false",
    with_output("", task="gaussian", shape="[3]"): r"shape = \[3\] cannot hold a mean and a log-variance",
    with_output("noise_precision = 1", task="gaussian", shape="[2]"): "noise_precision does not fit the task gaussian",
    with_output("noise_precision = 0"): "noise_precision = 0.0 is not above 0",
}


@pytest.mark.parametrize(("content", "message"), REFUSALS.items(), ids=map(str, range(len(REFUSALS))))
def test_what_is_wrong_is_refused_with_file_key_and_cure(content: str, message: str) -> None:
    with pytest.raises(InvalidModelFolder, match=f"^model.toml:? (?:.*){message}"):
        parse_datasheet(content.encode(), "model.toml")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidModelFolder, match=r"model.toml is not TOML"):
        parse_datasheet(b"\xff", "model.toml")


def test_a_file_nested_without_end_is_refused() -> None:
    with pytest.raises(InvalidModelFolder, match=r"model.toml is not TOML"):
        parse_datasheet(b"x = " + b"[" * 100_000, "model.toml")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_not_written(value: float) -> None:
    sheet = Datasheet((Input("x", shape=(3,)),), (Output("y", shape=(1,)),), score={"nll": value})

    with pytest.raises(InvalidModelFolder, match=r"(nan|inf) cannot be written to TOML"):
        datasheet_text(sheet)


def test_classes_may_be_on_an_axis_of_the_middle() -> None:
    one = Output("mask", Task.CLASSIFICATION, (3, 8, 8), Activation.SOFTMAX, ("a", "b", "c"), 1)
    sheet = Datasheet((Input("x", shape=(3,)),), (one,))

    assert parse_datasheet(datasheet_text(sheet).encode(), "model.toml").outputs == (one,)
