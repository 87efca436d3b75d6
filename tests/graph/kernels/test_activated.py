"""Element-wise sites through the kernel: a float64 reference, the CPU's own noise, the catalogue's laws, the engine."""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import (
    noise_is_shared_as_declared,
    passes_are_independent,
    rows_are_independent_in_scope_row,
    rows_share_one_network_in_scope_pass,
    the_mean_is_its_closed_form,
    the_variance_is_its_closed_form,
)
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.dropout import (
    Alpha,
    Bernoulli,
    Concrete,
    DropPath,
    FeatureAlpha,
    Gaussian,
    LayerDrop,
    Locked,
    ShakeDrop,
    Spatial,
    SpatialConcrete,
    Stream,
    Uniform,
)
from service.dropout.noise import Shape
from service.dropout.variant import ActivationVariant
from service.graph.compiled import Compiled
from service.graph.kernels.counted_sites import CountedApply, CountedNoise, counted_site
from service.graph.kernels.laws import ELEMENTWISE
from service.graph.products import ScaledLinear
from service.graph.shapes import BatchAxis
from service.plan import make_plan

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
VARIANTS: tuple[ActivationVariant, ...] = (
    *(Bernoulli(0.5), Bernoulli(0.25), Bernoulli(0.3), Bernoulli(0.001), Gaussian(0.3), Uniform(0.25), Alpha(0.1)),
    *(Concrete(0.1), Spatial(0.3), FeatureAlpha(0.2), SpatialConcrete(0.3), Locked(0.4), DropPath(0.3), LayerDrop(0.2)),
)
SIZES = st.sampled_from([1, 2, 7, 31, 33, 64, 255, 256, 257, 600])
CHANNELS = st.sampled_from([1, 3, 15, 16, 17, 40])
LENGTHS = st.sampled_from([1, 2, 5, 63, 65])
SHAPES = st.one_of(st.tuples(SIZES), st.tuples(CHANNELS, LENGTHS), st.tuples(CHANNELS, st.just(3), LENGTHS))


def acted(variant: ActivationVariant, noise: Tensor, x: Tensor, rows: int, function: str = "") -> Tensor:
    """Return y [S · B, …] of one pass's rows, or of all, x [B or S · B, …] through the kernel."""
    return CountedApply(variant, BatchAxis(0), CountedNoise(of=variant), function)(rows, noise, x)


def test_every_law_of_the_table_is_tried() -> None:
    assert {type(each) for each in VARIANTS} == ELEMENTWISE


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(VARIANTS), SHAPES, st.sampled_from(sorted(FUNCTIONS)), st.integers(1, 5), st.integers(1, 6),
    st.booleans(), st.booleans(), st.sampled_from(list(ERRORS)),
)  # fmt: skip
def test_it_is_the_reference_with_the_variants_own_noise(
    variant: ActivationVariant, shape: Shape, function: str, passes: int, rows: int, own: bool, apart: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    shape = shape if len(shape) == 2 or not isinstance(variant, Spatial | FeatureAlpha | Locked) else (*shape, 2)[:2]
    stream = Stream(9, "drop", 3, passes, range(4, 4 + rows) if own else None)
    x = torch.randn(passes if apart else 1, rows, *shape, generator=torch.Generator().manual_seed(prod(shape)))
    x = x.to(dtype)
    drawn = variant.draw(stream, shape)
    before = FUNCTIONS[function](x.double())
    expected = variant.apply(before, drawn.double() if drawn.is_floating_point() else drawn).expand(passes, -1, *shape)
    noise = CountedNoise(of=variant).draw(stream, shape)
    found = acted(variant, noise, x.flatten(0, 1), passes * rows, function).view(passes, rows, *shape)

    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= ERRORS[dtype] * expected.norm() + 1e-30


@pytest.mark.parametrize("rows", [None, (9, 2**62)])
@pytest.mark.parametrize("p", [0.5, 0.25, 0.3, 0.999, 2.0**-12])
@pytest.mark.parametrize("variant", [Bernoulli, Spatial])
def test_what_is_kept_is_the_variants_own_to_the_bit(
    variant: type[ActivationVariant], p: float, rows: tuple[int, ...] | None
) -> None:
    stream, shape, own = Stream(5, "drop", 2, 3, rows), (600, 2), variant(p)
    found = acted(own, CountedNoise(of=own).draw(stream, shape), torch.ones(2, *shape), 6).view(3, 2, *shape)

    assert torch.equal(found, own.draw(stream, shape).expand(3, 2, *shape))


@pytest.mark.parametrize("passes", [1, 7, 8, 9, 40])
def test_passes_are_all_written_however_they_are_parted(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, x = Gaussian(0.5), torch.randn(3, 300)
    noise = CountedNoise(of=variant).draw(Stream(1, "drop", 0, passes), (300,))
    whole = acted(variant, noise, x, 3 * passes)
    monkeypatch.setattr("service.graph.kernels.activated._PROGRAMS", 4)

    assert torch.equal(acted(variant, noise, x, 3 * passes), whole)
    assert torch.isfinite(whole).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_keep_their_ends(function: str) -> None:
    x = torch.tensor([[-200.0, -90.0, -20.0, -0.0, 20.0, 90.0, 200.0]])
    noise = CountedNoise(of=LayerDrop(1e-9)).draw(Stream(1, "drop", 0, 1), (7,))
    expected = FUNCTIONS[function](x)

    torch.testing.assert_close(acted(LayerDrop(1e-9), noise, x, 1, function), expected, rtol=1e-5, atol=1e-30)


LAWS = (
    *(the_mean_is_its_closed_form, the_variance_is_its_closed_form, noise_is_shared_as_declared),
    *(rows_share_one_network_in_scope_pass, rows_are_independent_in_scope_row, passes_are_independent),
)


def through_the_kernel(variant: ActivationVariant) -> ActivationVariant:
    """Return the variant with noise that is counted, and made where it acts."""
    kind: Any = type(variant)

    class Kernelled(kind):  # type: ignore[misc] # any variant's
        def draw(self, stream: Stream, shape: Shape) -> Tensor:
            return CountedNoise(of=variant).draw(stream, shape)

        def apply(self, x: Tensor, noise: Tensor) -> Tensor:
            return _acted(variant, noise.numpy().tobytes(), noise.shape, x.numpy().tobytes(), x.shape)

    made: ActivationVariant = Kernelled(**variant.parameters())
    return made


@lru_cache(maxsize=2)
def _acted(variant: ActivationVariant, noise: bytes, shape: torch.Size, x: bytes, given: torch.Size) -> Tensor:
    numbers = torch.frombuffer(bytearray(noise), dtype=torch.int64).view(shape)
    rows = torch.frombuffer(bytearray(x), dtype=torch.float32).view(given)
    return acted(variant, numbers, rows, len(numbers) * len(rows)).view(len(numbers), *given)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [each for each in VARIANTS if each.p > 0.01], ids=repr)
def test_it_keeps_the_laws(variant: ActivationVariant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.graph.kernels.activated._TILE", 1 << 19)  # the interpreter takes as long for few
    monkeypatch.setattr("service.graph.kernels.ties._SEGMENTS", 1 << 12)
    for law in LAWS:
        law(through_the_kernel(variant))


class Attending(nn.Module):
    """A layer of attention weights with heads in front of the rows' positions, and a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y[:, 0]


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 30), nn.SiLU(), nn.Dropout(0.5)),
        *(nn.Linear(30, 30), nn.GELU(), nn.Dropout(0.25), nn.LayerNorm(30), nn.Linear(30, 3)),
    )


def channels() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 5, 2), nn.Tanh(), nn.Dropout2d(0.4), nn.Conv2d(5, 3, 2), nn.ReLU(), nn.Dropout2d(0.5)),
        *(nn.Flatten(), nn.AlphaDropout(0.2), nn.Linear(12, 2)),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "mlp": (mlp, (6,)),
    "channels": (channels, (1, 4, 4)),
    "attending": (Attending, (5, 8)),
}


@pytest.fixture
def _kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.graph.kernels.DEVICES", {"cpu"})


def made(name: str) -> tuple[Predictor, Tensor]:
    build, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x = torch.randn(3, *shape)
        return Predictor.capture(build().eval(), (x,)), x


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("scope", ["pass", "row"])
@pytest.mark.parametrize(
    ("network", "asked"),
    [
        *[(name, {}) for name in NETWORKS],
        ("mlp", {"variant": "gaussian", "p": 0.3}),
        ("mlp", {"variant": "concrete", "p": 0.1}),
        ("channels", {"variant": "spatial", "p": 0.3}),
    ],
)
def test_the_engine_gives_the_passes_of_the_plain_path(
    network: str, asked: dict[str, Any], scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**asked, "scope": scope, "row_offset": 5, "passes": 9, "quantities": ["samples"]}
    predictor, x = made(network)
    found = predictor.predict(x, **asked)
    with monkeypatch.context() as patch:
        patch.setattr("service.graph.compiled.form_on", lambda device: None)
        expected = made(network)[0].predict(x, **asked)

    samples = (each.outputs["output"]["samples"] for each in (found, expected))
    torch.testing.assert_close(*samples, rtol=1e-5, atol=2e-6)
    assert not any("plain" in note for note in found.notes)


@pytest.mark.usefixtures("_kernels_on_cpu")
def test_noise_is_counted_and_activation_functions_are_taken_in() -> None:
    predictor, _ = made("mlp")
    compiled = Compiled(predictor._captured, make_plan(predictor.sites, None))
    nodes = list(compiled._split.suffix.graph.nodes)
    sites = [each.target for each in nodes if isinstance(each.target, CountedApply)]
    fused = [each.target.apply for each in nodes if isinstance(each.target, ScaledLinear)]

    assert all(isinstance(noise.variant, CountedNoise) for noise in compiled._fast.noises)
    assert [each.function for each in (*fused, *sites) if isinstance(each, CountedApply)] == ["", "silu", "gelu"]
    assert not any("silu" in str(each.target) or "gelu.default" in str(each.target) for each in nodes)


@pytest.mark.usefixtures("_kernels_on_cpu")
def test_a_last_site_is_integrated_as_on_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = nn.Sequential(*mlp()[:6], nn.Linear(30, 3)).eval(), torch.randn(3, 6)
    asked: dict[str, Any] = {"estimator": "integrated", "passes": 8}
    found = Predictor.capture(network, (x,)).predict(x, **asked)
    monkeypatch.setattr("service.graph.compiled.form_on", lambda device: None)
    expected = Predictor.capture(network, (x,)).predict(x, **asked)

    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_kernels_on_cpu")
def test_a_kernel_that_is_wrong_never_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, x = made("mlp")
    whole = CountedApply.__call__
    monkeypatch.setattr(CountedApply, "__call__", lambda self, *given: whole(self, *given) * 1.001)
    found = predictor.predict(x, passes=5)

    (note,) = [note for note in found.notes if "kernels" in note]
    assert note.startswith("2, 5, 8: plain operators stand in for kernels: SelfCheckFailed: ")


def test_what_kernels_do_not_make_is_left_to_its_variant() -> None:
    assert counted_site(Concrete(0.1, t=0.01), (), 1) == "they make no concrete noise with these parameters"
    assert counted_site(Bernoulli(0.1), ("a length that varies",), 1) == "they serve sites of fixed lengths"
    assert counted_site(ShakeDrop(), (), 1) == "they make no shake-drop noise"
