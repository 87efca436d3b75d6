"""Operators in another form give what the plain ones give, and stand where they are meant to."""

import gc
import timeit
import weakref
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from service import Predictor
from service.dropout.windows import Window
from service.graph import convolution, packing, tuned
from service.graph.convolution import FixedConvolution, Norm
from service.graph.fixed import FixedLinear, fix_weights
from service.graph.products import ScaledLinear
from service.graph.rewrite import rewrite
from service.graph.tuned import (
    LEAST,
    MaxPool,
    convolve,
    is_round,
    layer_in_eval,
    linear,
    lstm,
    next_round,
    rectified_linear,
    round_parts,
    suits_onednn,
)
from service.plan import make_plan

CONVOLUTIONS = {
    "plain": ((5, 4, 3, 3), {}),
    "one number for two axes": ((5, 4, 3, 3), {"stride": [2], "padding": [1], "dilation": [2]}),
    "stride and padding": ((5, 4, 3, 2), {"stride": [2, 1], "padding": [1, 0]}),
    "groups": ((6, 2, 3, 3), {"groups": 2}),
}
BODIES: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(4, 6, 3),
    "without a bias": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "groups": lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0), dilation=(2, 1), groups=2),
    "normalised": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), _norm()),
    "normalised without a bias": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), _norm()),
    "normalised without parameters": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), _norm(affine=False)),
    "rectified": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()),
    "normalised and rectified": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), _norm(), nn.ReLU()),
    "rectified, then normalised": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), _norm()),
    "viewed": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), View()),
    "read twice": lambda: Twice(nn.Conv2d(4, 6, 3), _norm()),
    "linear": lambda: nn.Linear(8, 5),
    "large linear": lambda: nn.Sequential(nn.Linear(8, 3000), nn.ReLU()),
    "rectified linear": lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU()),
}


class View(nn.Module):
    """Reshape what is in the plain order of memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, …] as [B, n]."""
        return x.view(x.shape[0], -1)


class Twice(nn.Module):
    """A convolution that two layers read: neither may be put into it."""

    def __init__(self, body: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.body, self.norm = body, norm

    def forward(self, x: Tensor) -> Tensor:
        """Return both layers' results beside one another."""
        y = self.body(x)
        return torch.cat([self.norm(y), y.relu()], 1)


def _norm(**options: Any) -> nn.Module:
    norm = nn.BatchNorm2d(6, **options)
    for each in (norm.running_mean, norm.running_var, *norm.parameters()):
        assert each is not None
        nn.init.uniform_(each, 0.5, 2)
    return norm


def _graph(network: nn.Module, x: Tensor) -> fx.GraphModule:
    return rewrite(Predictor.capture(network, x)._captured, {}).module


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_convolution_is_torchs(case: str, rows: int, dtype: torch.dtype) -> None:
    shape, geometry = CONVOLUTIONS[case]
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((rows, 4, 9, 8), shape, (shape[0],)))

    torch.testing.assert_close(convolve(x, weight, bias, **geometry), F.conv2d(x, weight, bias, **geometry))


def test_a_convolution_takes_values_in_any_order_of_memory() -> None:
    x, weight = (
        torch.randn(1, 8, 9, 4).movedim(-1, 1),
        torch.randn(5, 4, 3, 3).contiguous(memory_format=torch.channels_last),
    )

    torch.testing.assert_close(convolve(x, weight), F.conv2d(x, weight))


@pytest.mark.parametrize("outputs", [6, LEAST // 60 + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_linear_layer_is_torchs_in_any_order_of_axes(outputs: int, dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((3, 4, 5), (outputs, 5), (outputs,)))

    for given in (x, x.transpose(0, 1), x.flatten(0, 1)):
        allowed = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {}
        expected = F.linear(given, weight, bias)
        torch.testing.assert_close(linear(given, weight, bias), expected, **allowed)
        torch.testing.assert_close(rectified_linear(given, weight, bias), expected.relu(), **allowed)


def test_onednn_takes_no_matrix_that_it_would_copy() -> None:
    x, weight = torch.randn(64, 64), torch.randn(LEAST // 64, 64)

    assert suits_onednn(x, weight)
    assert suits_onednn(x.view(2, 32, 64).transpose(0, 1), weight)
    assert not suits_onednn(x.t(), weight)


def test_a_linear_layer_takes_in_its_site_and_its_rectifier() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    predictor = Predictor.capture(network.eval(), torch.randn(2, 4))
    compiled = predictor.compile(make_plan(predictor.sites))
    calls = [node.target for node in compiled._split.suffix.graph.nodes if node.op == "call_function"]

    assert [type(each) for each in calls] == [ScaledLinear, FixedLinear]
    assert calls[0].rectifies


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("case", BODIES)
def test_a_graph_of_fixed_weights_is_the_plain_one(case: str, rows: int) -> None:
    network = BODIES[case]().eval()
    shape = (8,) if "linear" in case else (4, 9, 8)
    x = torch.randn(rows, *shape)

    with torch.inference_mode():
        graph = fix_weights(_graph(network, torch.randn(2, *shape)))
        found = graph(x, rows)[0]
        turned = graph(x.movedim(1, -1).contiguous().movedim(-1, 1), rows)[0]
        expected = network(x)

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(turned, expected)


@pytest.mark.parametrize("channels", [1, 8, 32])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", [(2, 2), (3, 2, 1), (2, 2, 1), (3, 1, 1, 2), ((3, 2), (2, 1), (1, 0), 1, False, True)])
def test_pooling_is_torchs_in_any_order_of_memory(pool: tuple[Any, ...], order: Any, channels: int) -> None:
    layer = nn.MaxPool2d(*pool)
    for rows, length in ((1, 9), (4, 40)):
        x = torch.randn(rows, channels, length, length + 1).contiguous(memory_format=order)
        x[0, 0, 3, 3] = torch.nan
        torch.testing.assert_close(_pool(layer)(x), layer(x), rtol=0, atol=0, equal_nan=True)


def _pool(layer: nn.MaxPool2d) -> MaxPool:
    return MaxPool(Window.of(2, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode))


@pytest.mark.parametrize(
    ("pool", "shape", "is_last", "is_stock"),
    [
        ((2, 2), (1, 16, 24, 24), True, True),
        ((2, 2), (1, 16, 24, 24), False, True),
        ((2, 2), (1, 32, 24, 24), False, False),
        ((2, 2), (1, 4, 24, 24), True, True),
        ((2, 2), (8, 4, 24, 24), True, False),
        ((2, 2), (32, 64, 24, 24), True, False),
        ((3, 2, 1), (32, 64, 24, 24), True, True),
        ((3, 1, 1), (32, 64, 24, 24), True, False),
        ((3, 2, 1), (32, 16, 24, 24), True, False),
    ],
)
def test_torch_pools_what_it_pools_sooner(
    pool: tuple[int, ...], shape: tuple[int, ...], is_last: bool, is_stock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for name in ("stock_maximum", "maximum"):
        monkeypatch.setattr(tuned, name, lambda x, window, name=name: called.append(name) or x)
    order = torch.channels_last if is_last else torch.contiguous_format
    _pool(nn.MaxPool2d(*pool))(torch.zeros(shape).contiguous(memory_format=order))

    assert called == ["stock_maximum" if is_stock else "maximum"]


def test_a_pool_that_is_off_in_a_graph_is_pooled_so() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 2))
    x = torch.randn(2, 4, 9, 8)
    compiled = Predictor.capture(network.eval(), x)
    trunk = compiled.compile(make_plan(compiled.sites))._split.trunk

    assert [type(node.target) for node in trunk.graph.nodes if "activation_site" in node.name] == [MaxPool]
    pooled = compiled.compile(make_plan(compiled.sites, variant="max-pooling-dropout"))._split
    assert not any(type(node.target) is MaxPool for each in (pooled.trunk, pooled.suffix) for node in each.graph.nodes)


@pytest.mark.parametrize(("case", "kept"), [("normalised and rectified", 0), ("rectified, then normalised", 1)])
def test_what_alone_reads_a_convolution_is_put_into_it(case: str, kept: int) -> None:
    nodes = fix_weights(_graph(BODIES[case](), torch.randn(2, 4, 9, 8))).graph.nodes
    calls = [node.target for node in nodes if node.op == "call_function"]

    assert isinstance(calls[0], FixedConvolution)
    assert len(calls) == 1 + kept


def test_no_other_precision_is_fixed() -> None:
    graph = fix_weights(_graph(nn.Conv2d(4, 6, 3).double(), torch.randn(2, 4, 9, 8).double()))
    assert convolve in [node.target for node in graph.graph.nodes]


def test_networks_run_on_them_with_one_copy_for_all_plans() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(self.body(x).flatten(2), 0.5, self.training)
            z: Tensor = self.head(y.movedim(1, 2)).mean(1)
            return z

    def layers(p: float) -> tuple[Any, Any]:
        split = predictor.compile(make_plan(predictor.sites, p=p))._split
        targets = [node.target for module in (split.trunk, split.suffix) for node in module.graph.nodes]
        convolution, *_ = (each for each in targets if isinstance(each, FixedConvolution))
        head, *_ = (each for each in targets if isinstance(each, FixedLinear))
        return convolution, head

    predictor = Predictor.capture(Network(), torch.randn(2, 1, 6, 6))
    (body, head), (other_body, other_head) = layers(0.5), layers(0.1)
    assert body is not other_body
    assert head.packed is other_head.packed
    assert body.packed((3, 1, 6, 6)) is other_body.packed((5, 1, 6, 6))


@pytest.mark.parametrize("rows", [1, 2, 7, 37, 111, 1000, 1023])
def test_any_number_is_made_of_few_round_ones(rows: int) -> None:
    parts = round_parts(rows)

    assert sum(parts) == rows
    assert all(map(is_round, parts))
    assert parts == sorted(parts, reverse=True)
    assert len(parts) <= 4
    assert (len(parts) == 1) == is_round(rows)


def test_many_numbers_of_images_take_few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps one for each number: those of a server that puts requests together are any."""
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)
    layer = FixedConvolution(weight, bias, ((1, 1), (1, 1), (1, 1), 1), rectifies=True)
    run, whole = set(), FixedConvolution._convolved
    monkeypatch.setattr(FixedConvolution, "_convolved", lambda own, x: run.add(len(x)) or whole(own, x))
    images = torch.randn(130, 4, 5, 6)
    for count in range(2, 131):
        with torch.inference_mode():
            found = layer(images[:count])
            expected = F.conv2d(images[:count], weight, bias, padding=1).relu()
        torch.testing.assert_close(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)

    assert {count for count in run if not is_round(count)} == {7, 9, 11, 13, 14, 15}


@pytest.mark.parametrize(
    ("weight", "shape", "order", "options", "is_product"),
    [
        ((20, 1, 5, 5), (1, 1, 28, 28), torch.contiguous_format, {}, True),
        ((50, 20, 5, 5), (1, 20, 12, 12), torch.contiguous_format, {}, True),
        ((50, 20, 5, 5), (1, 20, 12, 12), torch.channels_last, {}, False),
        ((50, 20, 5, 5), (2, 20, 12, 12), torch.contiguous_format, {}, False),
        ((64, 64, 3, 3), (1, 64, 16, 16), torch.contiguous_format, {}, False),
        ((128, 64, 1, 1), (1, 64, 16, 16), torch.channels_last, {"stride": (2, 2)}, True),
        ((512, 64, 1, 1), (1, 64, 32, 32), torch.channels_last, {"stride": (2, 2)}, False),
        ((6, 2, 3, 3), (1, 4, 9, 8), torch.contiguous_format, {"groups": 2}, False),
        ((6, 4, 3, 2), (1, 4, 9, 8), torch.contiguous_format, {"dilation": (2, 1)}, False),
        ((6, 4, 3, 2), (1, 4, 9, 8), torch.contiguous_format, {"padding": (1, 0), "stride": (1, 2)}, True),
    ],
)
def test_a_small_image_is_convolved_by_a_product(
    weight: Any, shape: Any, order: Any, options: dict[str, Any], is_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"padding": (0, 0), "stride": (1, 1), "dilation": (1, 1), "groups": 1} | options
    norm = Norm(None, torch.randn(weight[0]), torch.randn(weight[0]), torch.rand(weight[0]) + 0.5, 1e-3)
    w, x = torch.randn(weight), torch.randn(shape).contiguous(memory_format=order)
    products, product = [], FixedConvolution._by_torch
    monkeypatch.setattr(FixedConvolution, "_by_torch", lambda own, x: products.append(x) or product(own, x))

    with torch.inference_mode():
        found = FixedConvolution(w, None, tuple(plain.values()), norm, rectifies=True)(x)
        convolved = F.conv2d(x, w, None, **plain)
        expected = F.batch_norm(convolved, norm.mean, norm.variance, None, norm.bias, eps=norm.eps).relu()

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert bool(products) == is_product


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": (1, 2)},
        {"padding": (2, 1), "stride": (1, 2)},
        {"padding": (2, 2), "stride": (3, 1), "dilation": (2, 3)},
    ],
    ids=str,
)
def test_windows_of_any_geometry_are_multiplied_at_once(
    options: dict[str, Any], bias: bool, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of two images, too."""
    plain = {"padding": (0, 0), "stride": (1, 1), "dilation": (1, 1), "groups": 1} | options
    weight, given = torch.randn(6, 4, 3, 2), torch.randn(6) if bias else None
    x = torch.randn(images, 4, 7, 8).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        layer = FixedConvolution(weight, given, tuple(plain.values()), rectifies=True)
        height, width = layer.size_of(x)
        monkeypatch.setattr(convolution, "_PART_ENTRIES", 2 * height * width * weight[0].numel())
        found = layer._by_windows(x)
        expected = F.conv2d(x, weight, given, **plain).relu()

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("weight", "shape", "stride", "is_product"),
    [
        ((512, 512, 3, 3), (2, 512, 2, 2), (1, 1), True),
        ((512, 512, 3, 3), (1, 512, 2, 2), (1, 1), False),
        ((512, 256, 3, 3), (5, 256, 4, 4), (2, 2), True),
        ((512, 256, 3, 3), (5, 256, 4, 4), (1, 1), False),
        ((512, 512, 3, 3), (5, 512, 1, 1), (1, 1), False),
        ((128, 128, 3, 3), (5, 128, 2, 2), (1, 1), False),
    ],
)
def test_few_windows_of_a_large_weight_are_multiplied_at_once(
    weight: Any, shape: Any, stride: Any, is_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, x = torch.randn(weight) * 0.02, torch.randn(shape)
    products, product = [], FixedConvolution._by_windows
    monkeypatch.setattr(FixedConvolution, "_by_windows", lambda own, x: products.append(x) or product(own, x))

    with torch.inference_mode():
        found = FixedConvolution(w, None, ((1, 1), stride, (1, 1), 1))(x)
        torch.testing.assert_close(found, F.conv2d(x, w, None, stride, 1), rtol=1e-4, atol=1e-4)
    assert bool(products) == is_product


@pytest.mark.parametrize("images", [1, 6])
def test_a_packed_weight_is_in_the_layout_that_its_images_and_threads_take(images: int) -> None:
    """To reorder it for every product takes many times as long as the product: seen on processors without AVX-512."""
    weight, x = torch.randn(256, 256, 3, 3), torch.randn(images, 256, 4, 4)
    layer = FixedConvolution(weight, None, ((1, 1), (1, 1), (1, 1), 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))  # others, as a server's first process has that forks the workers
    try:
        layer(x)
    finally:
        torch.set_num_threads(threads)

    def seconds(work: Callable[[], object]) -> float:
        work()
        return min(timeit.repeat(work, number=1, repeat=15))

    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-3)
        assert seconds(lambda: layer(x)) < 4 * seconds(lambda: F.conv2d(x, weight, padding=1))


def test_few_forms_of_a_weight_are_kept() -> None:
    layer = FixedConvolution(torch.randn(4, 4, 3, 3), None, ((0, 0), (1, 1), (1, 1), 1))
    with torch.inference_mode():
        for side in range(3, 60):
            layer(torch.randn(2, 4, side, side))
    assert len(packing._packed[layer._weight]) == packing._MOST_PACKED


def test_any_number_of_rows_may_come_without_memory_for_each() -> None:
    weight, x, own = torch.randn(512, 256), torch.randn(600, 256), psutil.Process()
    layer = FixedLinear(weight)
    with torch.inference_mode():
        layer(x, weight)
        before = own.memory_info().rss
        for rows in range(1, 600):
            layer(x[:rows], weight)
            linear(x[:rows], weight)
    assert own.memory_info().rss - before < 50_000_000


@pytest.mark.parametrize("rows", [1, 2, 7, 13])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_of_any_number_of_rows_are_torchs(rows: int, batch_first: bool, directions: int) -> None:
    layer = nn.LSTM(3, 5, 2, batch_first=batch_first, bidirectional=directions == 2)
    shape = (rows, 4, 3) if batch_first else (4, rows, 3)
    x, hx = torch.randn(shape), [torch.randn(2 * directions, rows, 5) for _ in range(2)]
    with torch.inference_mode():
        y, (h, c) = layer(x, tuple(hx))
        others = True, 2, 0.0, False, directions == 2, batch_first
        found = lstm(x, hx, layer._flat_weights, *others)
    for mine, theirs in zip(found, (y, h, c), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("rows", [1, 2, 7, 13])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_our_recurrent_layers_of_any_number_of_rows_are_the_plain_ones(
    rows: int, batch_first: bool, directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.LSTM(3, 5, batch_first=batch_first, bidirectional=directions == 2)
    x = torch.randn((rows, 4, 3) if batch_first else (4, rows, 3))
    h, c = (torch.randn(directions, rows, 5) for _ in range(2))
    parameters, rest = layer._flat_weights, (directions == 2, batch_first, "variational-rnn", [0.3])
    taken, torchs = [], torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda x, *given: taken.append(x.shape) or torchs(x, *given))
    with torch.inference_mode():
        found = layer_in_eval(x, [h, c], parameters, None, *rest)
        (shape,) = taken
        expected, states = layer(x, (h, c))
        lengths = torch.full((rows,), 4)
        of_lengths = layer_in_eval(x, [h, c], parameters, lengths, *rest)
    assert shape[0 if batch_first else 1] == next_round(rows)
    for mine, theirs in zip(found, (expected, *states), strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(of_lengths, (expected, *states), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_round_numbers_are_few_and_near() -> None:
    rounded = [next_round(rows) for rows in range(1, 4097)]
    assert all(rows <= found <= 1.34 * rows for rows, found in enumerate(rounded, 1))
    assert len(set(rounded)) <= 4 * 12
    assert {next_round(rows) for rows in (1, 50, 96, 100, 1600)} == {1, 50, 96, 100, 1600}


def test_packed_weights_go_with_the_weight() -> None:
    layer = nn.Linear(300, 300)
    gc.collect()
    before = len(packing._packed)
    kept = weakref.ref(FixedLinear(layer.weight.detach()).packed)
    gc.collect()
    assert kept() is None
    assert len(packing._packed) == before
