"""What `model.toml` says of a model, read strictly and written back; it does not know where the file lies, or torch.

The file has `description`, `lost` (modules that stayed in eval mode), a table `[defaults]` (passes, seed, variant), one
`[[inputs]]` for each `signature.Input`, one `[[outputs]]` for each `signature.Output`, and `[score]`: held-out figures,
written by whoever trained the model.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType

from service.errors import InvalidModelFolder
from service.signature import Activation, Input, Output, Task
from service.toml_table import Table, toml_lines

MIN_PASSES = 2
MAX_PASSES = 10_000
TENSOR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")
FLOATING = ("float16", "bfloat16", "float32", "float64")
DTYPES = (*FLOATING, "int8", "int16", "int32", "int64", "uint8", "bool")
ACTIVATIONS = {
    Task.CLASSIFICATION: (Activation.NONE, Activation.SOFTMAX),
    Task.MULTILABEL: (Activation.NONE, Activation.SIGMOID),
    Task.REGRESSION: tuple(Activation),
    Task.GAUSSIAN: (Activation.NONE,),
}
_MEASURED = (Task.REGRESSION, Task.GAUSSIAN)


@dataclass(frozen=True)
class Datasheet:
    """What `model.toml` says.

    Attributes:
        inputs: The network's inputs, in order.
        outputs: The network's outputs, in order.
        description: What the model is, for people.
        passes: The number of passes where a request names none.
        seed: The seed where a request names none.
        variant: The variant where a request names none.
        score: Held-out figures by name.
        lost: Modules whose randomness could not be captured.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    description: str = ""
    passes: int = 100
    seed: int = 0
    variant: str = "trained"
    score: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    lost: tuple[str, ...] = ()


def parse_datasheet(content: bytes, place: str) -> Datasheet:
    """Read the content of a `model.toml`.

    Args:
        content: The file's bytes.
        place: The file's name, for messages.

    Raises:
        InvalidModelFolder: With file, key and cure.
    """
    try:
        table = Table(place, "", tomllib.loads(content.decode()))
    except (ValueError, RecursionError) as error:
        raise InvalidModelFolder(f"{place} is not TOML: {error}; correct it there") from error
    inputs = tuple(_read_input(entry) for entry in table.tables("inputs"))
    outputs = tuple(_read_output(entry) for entry in table.tables("outputs"))
    _check_distinct(table, "inputs", [one.name for one in inputs])
    _check_distinct(table, "outputs", [one.name for one in outputs])
    description, lost = table.text("description", ""), table.texts("lost")
    passes, seed, variant = _read_defaults(table.table("defaults"))
    score = _read_score(table.table("score"))
    table.close()
    return Datasheet(inputs, outputs, description, passes, seed, variant, score, lost)


def datasheet_text(sheet: Datasheet) -> str:
    """Write a `model.toml` that `parse_datasheet` reads back as the same.

    Raises:
        InvalidModelFolder: On what `parse_datasheet` would refuse.
    """
    defaults = {"passes": sheet.passes, "seed": sheet.seed, "variant": sheet.variant}
    blocks = [
        toml_lines({"description": sheet.description} | ({"lost": sheet.lost} if sheet.lost else {})),
        ["[defaults]", *toml_lines(defaults)],
        *(["[[inputs]]", *toml_lines(_told(one))] for one in sheet.inputs),
        *(["[[outputs]]", *toml_lines(_told(one))] for one in sheet.outputs),
        *([["[score]", *toml_lines(sheet.score)]] if sheet.score else []),
    ]
    text = "\n\n".join("\n".join(block) for block in blocks) + "\n"
    parse_datasheet(text.encode(errors="replace"), "the datasheet to write")
    return text


def _told(one: Input | Output) -> dict[str, object]:
    """Return the fields that the reader requires or that differ from their defaults."""
    values = {entry.name: getattr(one, entry.name) for entry in fields(one)}
    defaults = {entry.name: entry.default for entry in fields(one) if entry.default is not MISSING}
    required = ("name", "dtype", "task", "shape")
    return {key: value for key, value in values.items() if key in required or value != defaults[key]}


def _read_defaults(table: Table) -> tuple[int, int, str]:
    passes, seed, variant = table.whole("passes", 100), table.whole("seed", 0), table.text("variant", "trained")
    if not MIN_PASSES <= passes <= MAX_PASSES:
        table.fail("passes", f"= {passes} is out of range; give {MIN_PASSES} to {MAX_PASSES}")
    if seed < 0:
        table.fail("seed", f"= {seed} is negative; give 0 or more")
    if not TENSOR_NAME.fullmatch(variant):
        table.fail("variant", f"= {variant!r} is not a variant's name; give 'trained' or one of `thinnet variants`")
    table.close()
    return passes, seed, variant


def _read_score(table: Table) -> Mapping[str, float]:
    return MappingProxyType({key: table.number(key) for key in table.written})


def _read_input(table: Table) -> Input:
    one = Input(
        name=table.text("name"),
        dtype=table.text("dtype", "float32"),
        shape=table.wholes("shape"),
        features=table.texts("features"),
        units=table.texts("units"),
        mean=table.numbers("mean"),
        std=table.numbers("std"),
    )
    table.close()
    _check_name(table, one.name)
    if one.dtype not in DTYPES:
        table.fail("dtype", f"= {one.dtype!r} cannot be served; give one of {', '.join(DTYPES)}")
    _check_shape(table, one.shape)
    _check_features(table, one)
    _check_standardisation(table, one)
    return one


def _read_output(table: Table) -> Output:
    task = table.choice("task", Task)
    one = Output(
        name=table.text("name"),
        task=task,
        shape=table.wholes("shape"),
        activation=table.choice("activation", Activation, Activation.NONE),
        labels=table.texts("labels"),
        class_axis=table.whole("class_axis", -1),
        scale=table.number("scale", 1.0),
        shift=table.number("shift", 0.0),
        exp=table.flag("exp", False),
        noise_precision=table.number("noise_precision") if "noise_precision" in table.written else None,
        unit=table.text("unit", ""),
    )
    table.close()
    _check_name(table, one.name)
    _check_shape(table, one.shape)
    _check_classes(table, one)
    _check_scaling(table, one)
    return one


def _check_name(table: Table, name: str) -> None:
    if not TENSOR_NAME.fullmatch(name):
        table.fail("name", f"= {name!r} is not a name; give a letter, then letters, digits, '.', '_', '-', 64 at most")


def _check_distinct(table: Table, key: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            table.fail(key, f"has {name!r} {names.count(name)} times; give each a name of its own")


def _check_shape(table: Table, shape: tuple[int, ...]) -> None:
    if any(size < 1 and size != -1 for size in shape):
        table.fail("shape", f"= {list(shape)} has a size below 1; give a row's sizes, -1 where one varies")


def _check_features(table: Table, one: Input) -> None:
    for key, values in (("features", one.features), ("units", one.units)):
        if values and (not one.shape or one.shape[-1] not in (-1, len(values))):
            table.fail(
                key, f"has {len(values)} entries for shape {list(one.shape)}; give one for each of its last axis"
            )
    if len(set(one.features)) < len(one.features):
        table.fail("features", "names one feature twice; give each a name of its own")


def _check_standardisation(table: Table, one: Input) -> None:
    if len(one.mean) != len(one.std):
        table.fail("std", f"has {len(one.std)} entries and mean has {len(one.mean)}; give both, as many of each")
    if not one.mean:
        return
    if one.dtype not in FLOATING:
        table.fail("mean", f"cannot standardise {one.dtype}; leave mean and std out")
    last = one.shape[-1] if one.shape else 1
    if len(one.mean) != 1 and last not in (-1, len(one.mean)):
        table.fail("mean", f"has {len(one.mean)} entries for shape {list(one.shape)}; give 1, or one for each feature")
    if min(one.std) <= 0:
        table.fail("std", f"has {min(one.std)}, and must be above 0; give 1 for a feature that never varies")


def _check_classes(table: Table, one: Output) -> None:
    if one.activation not in ACTIVATIONS[one.task]:
        allowed = ", ".join(ACTIVATIONS[one.task])
        table.fail("activation", f"= {one.activation.value!r} does not fit the task {one.task.value}; give {allowed}")
    rank = len(one.shape)
    if one.task in _MEASURED:
        axis = -1
    elif one.class_axis != 0 and -rank <= one.class_axis <= rank:
        axis = one.class_axis - (one.class_axis > 0)
    else:
        table.fail("class_axis", f"= {one.class_axis} is no axis of a row; the batch is 0, so give 1 to {rank}, or -1")
    _check_labels(table, one, one.shape[axis] if rank else 1)


def _check_labels(table: Table, one: Output, size: int) -> None:
    count = size // 2 if one.task is Task.GAUSSIAN and size > 0 else size
    if one.labels and count not in (-1, len(one.labels)):
        table.fail(
            "labels", f"has {len(one.labels)} names where shape {list(one.shape)} has {count}; give one for each"
        )
    if len(set(one.labels)) < len(one.labels):
        table.fail("labels", "has one name twice; give each a name of its own")


def _check_scaling(table: Table, one: Output) -> None:
    if one.scale <= 0:
        table.fail("scale", f"= {one.scale} is not above 0; give the target's standard deviation, or leave it out")
    if one.task not in _MEASURED and (one.scale, one.shift, one.exp) != (1, 0, False):
        table.fail("scale", f"(or shift, or exp) does not fit the task {one.task.value}; leave all three out")
    if one.task is Task.GAUSSIAN and (not one.shape or (one.shape[-1] != -1 and one.shape[-1] % 2)):
        table.fail(
            "shape", f"= {list(one.shape)} cannot hold a mean and a log-variance; its last axis holds both halves"
        )
    if one.noise_precision is None:
        return
    if one.task is not Task.REGRESSION:
        table.fail("noise_precision", f"does not fit the task {one.task.value}; leave it out")
    if one.noise_precision <= 0:
        table.fail("noise_precision", f"= {one.noise_precision} is not above 0; give one over the noise's variance")
