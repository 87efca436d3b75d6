"""Honest archives, taken apart so that a test can change them, and put together again as bytes."""

import functools
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
Entries = dict[str, bytes]
Change = Callable[[Any], object]


class Victim(nn.Module):
    """Small, with a parameter, a buffer, a constant, a dynamic axis, a nested graph and an input that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)
        self.register_buffer("shift", torch.arange(3.0))

    def forward(self, x: Tensor, spare: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.linear(x) * torch.tensor([1.0, 2.0, 3.0])
        dropped: Tensor = self.drop(y + self.shift)
        return dropped


def example(rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.ones(rows, 4), torch.ones(rows, 1)


def saved(module: nn.Module, args: tuple[Any, ...], dynamic: Any = None, **options: Any) -> bytes:
    """Export a module and save it as torch does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's remarks
        program = torch.export.export(module, args, options.pop("kwargs", None), dynamic_shapes=dynamic)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, **options)
    return buffer.getvalue()


@functools.cache
def honest_bytes() -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        batch = {0: torch.export.Dim.DYNAMIC}
        return saved(Victim().eval(), example(), (batch, batch))


def honest() -> Entries:
    return unpacked(honest_bytes())


def unpacked(data: bytes) -> Entries:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def packed(entries: Entries, root: str = "archive/", compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(root + name, data)
    return buffer.getvalue()


def edited(name: str, *changes: Change) -> Entries:
    """Return the honest archive with changes made to one entry of JSON."""
    entries = honest()
    value = json.loads(entries[name])
    for change in changes:
        change(value)
    return {**entries, name: json.dumps(value).encode()}


def graph_of(model: Any) -> Any:
    return model["graph_module"]["graph"]


def node_of(model: Any, operator: str) -> Any:
    return next(node for node in graph_of(model)["nodes"] if operator in node["target"])


def nested_graph_of(model: Any) -> Any:
    inputs = node_of(model, "wrap_with_set_grad_enabled")["inputs"]
    return next(each["arg"]["as_graph"]["graph"] for each in inputs if "as_graph" in each["arg"])


def node(target: str, *arguments: tuple[str, Any], output: str | None = None) -> dict[str, Any]:
    """Make a node of a graph's JSON; arguments are names and values such as {"as_int": 1}."""
    return {
        "target": target,
        "inputs": [{"name": name, "arg": value, "kind": None} for name, value in arguments],
        "outputs": [{"as_tensor": {"name": output}}] if output else [],
        "metadata": {},
        "name": output,
    }


def tensor_of(*sizes: int) -> dict[str, Any]:
    return {
        "dtype": 7,
        "sizes": [{"as_int": size} for size in sizes],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": 1} for _ in sizes],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }


def write_file(graph: Any, canary: Path) -> None:
    """Make a graph map a file into memory, which creates it, and use what it reads there."""
    arguments = [
        ("filename", {"as_string": str(canary)}),
        ("shared", {"as_bool": True}),
        ("size", {"as_int": 3}),
        ("dtype", {"as_scalar_type": 7}),
    ]
    user = next(
        each for each in graph["nodes"] if each["target"] in ("torch.ops.aten.add.Tensor", "torch.ops.aten.mul.Tensor")
    )
    user["inputs"][1]["arg"] = {"as_tensor": {"name": "mapped"}}
    graph["nodes"].insert(0, node("torch.ops.aten.from_file.default", *arguments, output="mapped"))
    graph["tensor_values"]["mapped"] = tensor_of(3)


class _Touch:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def pickled(canary: Path) -> bytes:
    """Pickle something that touches a file when it is opened, as torch.save does."""
    buffer = io.BytesIO()
    torch.save(_Touch(canary), buffer)
    return buffer.getvalue()


def plain_pickle(canary: Path) -> bytes:
    return pickle.dumps(_Touch(canary))


def python(canary: Path) -> str:
    """Write Python that touches a file."""
    return f"open({str(canary)!r}, 'w').close()"


def fires(data: bytes, canary: Path, run: bool = False) -> bool:
    """Tell whether torch's own loader, and the network if it is run, touches the canary; then remove that."""
    assert not canary.exists()
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks while it is attacked
        program = torch.export.load(io.BytesIO(data))
        if run:
            program.module()(*example())
    fired = canary.exists()
    canary.unlink(missing_ok=True)
    return fired
