"""Networks that people have, saved by torch itself: the loader gets in nobody's way."""

import dataclasses
import io
import typing
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import forge
import pytest
import torch
from torch import Tensor, nn
from torch._export.serde import schema
from torch.export import Dim
from torch.nn import functional as F

from service.dropout import DropConnectLinear, GaussianDropout
from service.graph.archive import load_program
from service.graph.archive.expressions import checked_expression
from service.graph.archive.fields import FIELDS
from service.graph.archive.operators import ATEN, checked_operator

D: Any = Dim.DYNAMIC


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, 4, 3, padding=1), nn.Dropout2d(0.3)
        self.norm, self.head = nn.BatchNorm2d(4).eval(), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.drop(F.relu(self.norm(self.conv(x)), inplace=True)), 2).flatten(1))


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 6, 3, 1, 1, bias=False)
        self.down, self.norm, self.head = nn.Conv2d(3, 6, 1, 2), nn.BatchNorm2d(6).eval(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.b(F.relu(self.norm(self.a(x)))))
        y += self.down(x)
        return self.head(F.adaptive_avg_pool2d(F.relu_(y), 1).flatten(1))


class PaddedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, activation="gelu")
        self.embed, self.encoder = nn.Embedding(9, 8), nn.TransformerEncoder(layer, 2)
        self.register_buffer("positions", torch.arange(32).expand(1, -1), persistent=False)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions[:, : tokens.shape[1], None]
        return self.encoder(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0.0).mean(1)


class Recurrent(nn.Module):
    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell(4, 5, num_layers=2, dropout=0.4, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0][:, -1]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 1)

    def forward(self, x: Tensor, y: Tensor | None = None, *, scale: Tensor) -> dict[str, Any]:
        h = torch.tanh(self.body(x if y is None else x + y)) * scale
        return {"left": self.left(h), "rest": (self.right(h), [h, None]), "width": 5}


class SharedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("view", self.embed.weight.detach()[2:4].t())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).mean(1)) @ self.head.weight[:, :2] @ self.view[:2]


class Sizes(nn.Module):
    """Arithmetic on the sequence's length: divided, rounded, padded, squared, rooted."""

    def forward(self, x: Tensor) -> Tensor:
        rows, length = x.shape[0], x.shape[1]
        x = F.pad(x, (0, 0, 0, (4 - length % 4) % 4))
        scores = x @ x.transpose(1, 2) / length**0.5 * (length / rows)
        flat = scores.reshape(rows, x.shape[1] ** 2)[:, : min(length, 3)]
        return flat.sum(1) + x[:, -(-length // 2) :].mean() + max(length, rows) + x[:, : length // 2].sum()


class Resized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.interpolate(x, scale_factor=1.5, mode="bilinear"), scale_factor=2).mean((2, 3))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.cond(x.sum() > 0, lambda z: z * 2, lambda z: F.dropout(z, 0.5, False), (x,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = y @ y.transpose(0, 1)
        return y.float()


class NestedRegions(nn.Module):
    """Torch saves an empty region beside the full one, which it cannot load itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            return self.linear(x)


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(8)
        return torch.stft(x, 8, window=window, return_complex=True).abs().mean((1, 2)) + torch.einsum("bi,bi->b", x, x)


class Chosen(nn.Module):
    """Sizes that depend on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x[x > 0].sum() * x.argmax().item()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]], Any]] = {
    "LeNet": (LeNet, lambda: (torch.randn(3, 1, 8, 8),), ({0: D},)),
    "a residual block": (ResidualBlock, lambda: (torch.randn(3, 3, 8, 8),), ({0: D},)),
    "an encoder with padding": (
        PaddedEncoder,
        lambda: (torch.randint(0, 9, (3, 5)), torch.arange(5).expand(3, 5) > 3),
        ({0: D, 1: D}, {0: D, 1: D}),
    ),
    "LSTM": (lambda: Recurrent(nn.LSTM), lambda: (torch.randn(3, 6, 4),), ({0: D},)),
    "GRU": (lambda: Recurrent(nn.GRU), lambda: (torch.randn(3, 6, 4),), ({0: D},)),
    "two heads": (TwoHeads, lambda: (torch.randn(3, 4), torch.randn(3, 4)), None),
    "shared weights": (SharedWeights, lambda: (torch.randint(0, 7, (3, 4)),), ({0: D},)),
    "arithmetic on sizes": (Sizes, lambda: (torch.randn(3, 7, 6),), ({0: D, 1: D},)),
    "images of any size": (Resized, lambda: (torch.randn(3, 1, 6, 8),), ({0: D, 2: D, 3: D},)),
    "branches": (Branches, lambda: (torch.randn(3, 4),), ({0: D},)),
    "a spectrum": (Spectrum, lambda: (torch.randn(3, 32),), ({0: D},)),
    "sizes of data": (Chosen, lambda: (torch.randn(3, 4),), ({0: D},)),
    "our layers": (
        lambda: nn.Sequential(DropConnectLinear(4, 8, p=0.3), GaussianDropout(0.2), nn.Linear(8, 3)),
        lambda: (torch.randn(3, 4),),
        ({0: D},),
    ),
    "an odd module name": (
        lambda: nn.Sequential(nn.ModuleDict({"a-b c": nn.Linear(4, 4)})["a-b c"], nn.ModuleDict({"é": nn.ReLU()})["é"]),
        lambda: (torch.randn(3, 4),),
        ({0: D},),
    ),
}


def outputs(program: torch.export.ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return torch.utils._pytree.tree_leaves(program.module()(*args, **kwargs))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(("make", "inputs", "dynamic"), NETWORKS.values(), ids=NETWORKS)
def test_what_torch_saved_loads_and_answers_the_same(
    make: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], dynamic: Any, training: bool, tmp_path: Path
) -> None:
    module, args = make(), inputs()
    kwargs = {"scale": torch.tensor(2.0)} if isinstance(module, TwoHeads) else {}
    module.eval()(*args, **kwargs)
    for child in module.modules():
        child.training = training and not isinstance(child, nn.BatchNorm2d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's remarks
        before = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic)
        torch.export.save(before, tmp_path / "program.pt2")
    after = load_program(tmp_path / "program.pt2")
    for mine, theirs in zip(outputs(after, args, kwargs), outputs(before, args, kwargs), strict=True):
        assert torch.equal(mine, theirs) if isinstance(theirs, Tensor) else mine == theirs
    assert [node.target for node in after.graph.nodes if node.op == "call_function"] == [
        node.target for node in before.graph.nodes if node.op == "call_function"
    ]
    assert {str(key): str(value) for key, value in after.range_constraints.items()} == {
        str(key): str(value) for key, value in before.range_constraints.items()
    }


def test_regions_that_torch_saves_but_cannot_load_are_left_out(tmp_path: Path) -> None:
    module, x = NestedRegions().eval(), torch.randn(2, 4)
    data = forge.saved(module, (x,))
    with pytest.raises(Exception, match="wrap_with_autocast is missing val field"):
        torch.export.load(io.BytesIO(data))
    (tmp_path / "program.pt2").write_bytes(data)
    assert torch.equal(load_program(tmp_path / "program.pt2").module()(x), module(x))


def test_a_weight_that_is_a_view_keeps_its_numbers(tmp_path: Path) -> None:
    module = SharedWeights().eval()
    (tmp_path / "program.pt2").write_bytes(forge.saved(module, (torch.zeros(2, 4, dtype=torch.long),)))
    state = load_program(tmp_path / "program.pt2").state_dict
    assert {name: value.tolist() for name, value in state.items()} == {
        name: value.tolist() for name, value in module.state_dict().items()
    }


def test_files_load_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(forge.honest_bytes())
    with ThreadPoolExecutor(4) as pool:
        programs = list(pool.map(load_program, [path] * 8))
    assert [program.graph_signature.user_inputs for program in programs] == [("x", "spare")] * 8


def test_a_file_from_a_gpu_loads_on_the_cpu(tmp_path: Path) -> None:
    entries = forge.honest()
    for name in (forge.MODEL, forge.WEIGHTS, forge.CONSTANTS):
        entries[name] = entries[name].replace(b'"type": "cpu", "index": null', b'"type": "cuda", "index": 0')
    (tmp_path / "program.pt2").write_bytes(forge.packed(entries))
    program = load_program(tmp_path / "program.pt2")
    assert {value.device.type for value in program.state_dict.values()} == {"cpu"}
    assert program.module()(*forge.example()).device.type == "cpu"


@pytest.mark.parametrize("name", sorted(ATEN))
def test_an_allowed_operator_exists_and_takes_no_name_of_a_file(name: str) -> None:
    packets = [packet for packet in (getattr(torch.ops.aten, each, None) for each in (name, f"{name}_")) if packet]
    overloads = [getattr(packet, each) for packet in packets for each in packet.overloads()]
    accepted = [each for each in overloads if accepts(each)]
    assert accepted
    for overload in accepted:
        for argument in overload._schema.arguments:
            assert argument.name in TEXT_ARGUMENTS or "str" not in str(argument.type), overload
            assert str(argument.type) not in ("Storage", "Stream"), overload


TEXT_ARGUMENTS = (
    "UPLO",
    "approximate",
    "assert_msg",
    "driver",
    "equation",
    "indexing",
    "interpolation",
    "mode",
    "norm",
)
TEXT_ARGUMENTS += ("ord", "p", "pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side")


def accepts(overload: torch._ops.OpOverload) -> bool:
    try:
        checked_operator(f"torch.ops.{overload}")
    except Exception:
        return False
    return True


@pytest.mark.parametrize("kind", [schema.ExportedProgram, schema.PayloadConfig])
def test_every_text_that_torch_reads_has_a_rule(kind: type) -> None:
    unruled = sorted(texts_without_a_rule(kind, set()))
    assert not unruled, "these are refused, which is safe, but nobody decided it"


def texts_without_a_rule(kind: type, seen: set[type]) -> Iterator[str]:
    seen.add(kind)
    hints = typing.get_type_hints(kind, globalns=vars(schema))
    for field in dataclasses.fields(kind):
        if f"{kind.__name__}.{field.name}" in FIELDS:
            continue
        for leaf in leaves(hints[field.name]):
            if leaf is str:
                yield f"{kind.__name__}.{field.name}"
            elif dataclasses.is_dataclass(leaf) and leaf not in seen:
                yield from texts_without_a_rule(leaf, seen)


def leaves(hint: Any) -> Iterator[Any]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is dict:
        arguments = arguments[1:]  # keys are names or have a rule of their own
    if not arguments:
        yield hint
    for each in arguments:
        yield from leaves(each)


HONEST_EXPRESSIONS = [
    "Symbol('s77', positive=True, integer=True)",
    "Mul(Integer(-1), Integer(6), FloorDiv(Mul(Integer(-1), Symbol('s21', positive=True, integer=True)), Integer(2)))",
    "FloatPow(ToFloat(Symbol('s21', positive=True, integer=True)), Float('0.5', precision=53))",
    "GreaterThan(Symbol('u0', integer=True), Integer(0))",
    "Max(Integer(1), TruncToInt(Mul(Float('1.5', precision=53), ToFloat(Symbol('s2', integer=True)))))",
    "2 * s0 + 1 - s1 // -2",
]


@pytest.mark.parametrize("text", HONEST_EXPRESSIONS)
def test_arithmetic_on_sizes_passes_unchanged(text: str) -> None:
    assert checked_expression(text) == text
