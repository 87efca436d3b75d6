"""The engine runs kernels on devices that they serve, with the passes of the plain path; elsewhere it says why not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from specimen import WIDTH, features, sequence
from torch import Tensor, nn

from service import Predictor
from service.dropout import Bernoulli, DropConnect, DropConnectSampled, ShakeDrop, Variant
from service.graph.compiled import Compiled
from service.graph.forms import plain_notes
from service.graph.kernels.counted import CountedDropConnect, CountedLinear, CountedSampled
from service.plan import make_plan

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "with a bias": lambda: nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU(), nn.Linear(9, 3)),
    "without a bias": lambda: nn.Sequential(nn.Linear(WIDTH, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)),
}
Inputs = Callable[[int], tuple[Tensor, ...]]
COUNTED = {"dropconnect": CountedDropConnect, "dropconnect-sampled": CountedSampled}


@pytest.fixture
def _kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.graph.kernels.DEVICES", {"cpu"})


def made(layers: str, given: tuple[Tensor, ...]) -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Predictor.capture(LAYERS[layers]().eval(), given)


def drawn(predictor: Predictor, variant: str) -> list[type[Variant]]:
    noises = Compiled(predictor._captured, make_plan(predictor.sites, variant))._fast.noises
    return [type(noise.variant) for noise in noises]


def samples(predictor: Predictor, given: tuple[Tensor, ...], **asked: object) -> Tensor:
    return predictor.predict(given, quantities=["samples"], **asked).outputs["output"]["samples"]  # type: ignore[arg-type] # a request's


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Return what asks the path without kernels or packed masks."""

    def ask(layers: str, given: tuple[Tensor, ...], **asked: object) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr("service.graph.compiled.form_on", lambda device: None)
            return samples(made(layers, given), given, **asked)

    return ask


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("scope", ["pass", "row"])
@pytest.mark.parametrize(
    ("layers", "variant", "p", "inputs"),
    [
        ("with a bias", "dropconnect", 0.5, features),
        ("without a bias", "dropconnect", 0.3, features),
        ("without a bias", "dropconnect", 0.25, sequence),
        ("with a bias", "dropconnect-sampled", 0.5, features),
        ("without a bias", "dropconnect-sampled", 0.1, features),
    ],
)
def test_kernels_give_the_passes_of_the_plain_path(
    layers: str, variant: str, p: float, inputs: Inputs, scope: str, plain: Callable[..., Tensor]
) -> None:
    given = inputs(3)
    asked = {"variant": variant, "p": p, "scope": scope, "row_offset": 5, "passes": 5}
    predictor = made(layers, given)

    assert drawn(predictor, variant) == [COUNTED[variant]] * 2
    torch.testing.assert_close(samples(predictor, given, **asked), plain(layers, given, **asked), rtol=1e-5, atol=2e-6)


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("variant", COUNTED)
def test_a_last_layer_is_integrated_as_on_the_plain_path(variant: str, plain: Callable[..., Tensor]) -> None:
    given, asked = features(3), {"variant": variant, "estimator": "integrated", "passes": 8}
    found = made("with a bias", given).predict(given, **asked)  # type: ignore[arg-type] # a request's
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.graph.compiled.form_on", lambda device: None)
        expected = made("with a bias", given).predict(given, **asked)  # type: ignore[arg-type] # a request's

    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("variant", COUNTED)
def test_products_in_bfloat16_stay_near(variant: str) -> None:
    given = features(3)
    asked = {"variant": variant, "passes": 5}
    wide, narrow = (
        samples(made("with a bias", given), given, precision=each, **asked) for each in ("float32", "bfloat16")
    )

    assert (narrow - wide).norm() < 1e-2 * wide.norm()


def wrong(self: CountedLinear, *given: Any) -> Tensor:
    return whole(self, *given) * 1.001


def broken(self: CountedLinear, *given: Any) -> Tensor:
    raise RuntimeError("out of resource: shared memory")


whole = CountedLinear.__call__


def in_bfloat16_alone(fault: Any) -> Any:
    def call(self: CountedLinear, rows: int, noise: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        return (fault if x.dtype == torch.bfloat16 else whole)(self, rows, noise, x, parameters)

    return call


def far(self: CountedLinear, *given: Any) -> Tensor:
    return whole(self, *given) * 2


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize(
    ("fault", "said"), [(far, "in bfloat16 passes are far from the whole graph's"), (broken, "RuntimeError: out of")]
)
def test_a_kernel_that_serves_in_float32_alone_does_not_serve_in_bfloat16(
    fault: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, asked = features(3), {"variant": "dropconnect", "passes": 5}
    expected = samples(made("with a bias", given), given, **asked)
    monkeypatch.setattr(CountedLinear, "__call__", in_bfloat16_alone(fault))
    predictor = made("with a bias", given)
    found = {each: predictor.predict(given, precision=each, **asked) for each in ("float32", "bfloat16")}  # type: ignore[arg-type] # a request's

    assert found["float32"].notes == ()
    assert found["bfloat16"].notes[0].startswith(f"0.weight, 2.weight: plain operators stand in for kernels: {said}")
    error = samples(predictor, given, precision="bfloat16", **asked) - expected
    assert error.norm() < 1e-2 * expected.norm()


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize(
    ("fault", "said", "precision"),
    [(wrong, "differ from the whole graph's", "float32"), (broken, "shared memory", "bfloat16")],
)
def test_a_kernel_that_is_wrong_or_fails_never_serves(
    fault: Any, said: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = features(3)
    asked: dict[str, Any] = {"variant": "dropconnect", "passes": 5, "precision": precision}
    expected = samples(made("with a bias", given), given, **asked)
    monkeypatch.setattr(CountedLinear, "__call__", fault)
    found = made("with a bias", given).predict(given, quantities=["samples"], **asked)

    error = (found.outputs["output"]["samples"] - expected).norm() / expected.norm()
    assert error < (1e-2 if precision == "bfloat16" else 1e-5)
    (note,) = [note for note in found.notes if "kernels" in note]
    assert note.startswith("0.weight, 2.weight: plain operators stand in for kernels: SelfCheckFailed: ")
    assert said in note


def wrong_for_rows(self: CountedLinear, rows: int, noise: Tensor, *given: Any) -> Tensor:
    return whole(self, rows, noise, *given) * (1.001 if noise.shape[-2] > 1 else 1)


@pytest.mark.usefixtures("_kernels_on_cpu")
def test_a_kernel_that_is_wrong_for_rows_of_their_own_serves_nowhere(
    plain: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedLinear, "__call__", wrong_for_rows)
    given, asked = features(3), {"variant": "dropconnect", "passes": 5, "scope": "row"}
    predictor = made("with a bias", given)

    assert torch.equal(samples(predictor, given, **asked), plain("with a bias", given, **asked))
    (note,) = predictor.predict(given, variant="dropconnect").notes
    assert note == (
        "0.weight, 2.weight: plain operators stand in for kernels: with them passes do not run folded but rows looped"
    )


@pytest.mark.usefixtures("_kernels_on_cpu")
def test_where_no_kernel_serves_a_layer_the_answer_says_so_once() -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 2)).eval()
    x = torch.randn(3, 2, 4)
    found = Predictor.capture(network, (x,)).predict(x, variant="dropconnect", passes=3)

    assert [note for note in found.notes if "kernels" in note] == [
        "0.weight: plain operators stand in for kernels: they serve no weights of convolutions",
        "2.weight: plain operators stand in for kernels: passes do not fold into the rows, which the noise of 0.weight "
        "does not meet",
    ]


def test_without_triton_or_on_another_device_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [("a.weight", DropConnect()), ("b", Bernoulli()), ("c.weight", DropConnectSampled()), ("d", ShakeDrop())]
    of_another = plain_notes(torch.device("mps"), drawn, {"a.weight": "of another reason"})
    monkeypatch.setattr("service.graph.kernels.find_spec", lambda name: None)

    assert of_another == ("a.weight, b, c.weight, d: plain operators stand in for kernels: they serve cuda, not mps",)
    (note,) = plain_notes(torch.device("cuda"), drawn, {})
    assert note.endswith("in for kernels: triton is not installed; pip install triton")


def test_on_the_cpu_no_kernel_is_missed() -> None:
    given = features(3)

    assert not any("kernels" in note for note in made("with a bias", given).predict(given, variant="dropconnect").notes)
