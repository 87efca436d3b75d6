"""bfloat16 products: near the float32 answer, not equal to it, told in the notes, only where asked for."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from specimen import features, image, mlp, sequence
from torch import Tensor, nn

from service import Predictor
from service.errors import BadRequest
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.graph.passes import RUNNERS, Mode
from service.graph.precision import BFLOAT16, FLOAT32, NOTES, TF32, ruled
from service.graph.rates import measured
from service.plan import make_plan


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(6, 2, 12, 0.2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x).mean(1))
        return y


def convolution() -> nn.Module:
    drop = nn.Dropout2d(0.3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), drop, nn.Conv2d(4, 5, 3), nn.Flatten())


CASES = {
    "linear": (lambda: mlp(nn.Dropout(0.4)), features, {}),
    "convolution": (convolution, image, {}),
    "attention": (Attention, sequence, {}),
    "packed masks": (lambda: mlp(nn.Identity()), features, {"variant": "dropconnect"}),
    "packed masks, a vector each": (lambda: mlp(nn.Identity()), features, {"variant": "dropconnect", "scope": "row"}),
    "masked convolution": (convolution, image, {"sites": {"4.weight": "dropconnect"}}),
}


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_near_float32_pass_by_pass_and_not_equal(name: str) -> None:
    make, inputs, plan = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network, given = make().eval(), inputs(4)
    predictor = Predictor.capture(network, given)
    asked = {"passes": 40, "quantities": ["samples"], **plan}
    wide, narrow = (predictor.predict(given, precision=each, **asked) for each in ("float32", "bfloat16"))
    theirs, mine = (each.outputs["output"]["samples"] for each in (wide, narrow))
    apart = (mine - theirs).abs().max() / theirs.abs().max()

    assert 0 < apart < 0.02  # a bfloat16 has 8 bits
    assert (mine - theirs).square().mean() < 1e-3 * theirs.var(1).mean()
    assert NOTES[BFLOAT16] in narrow.notes
    assert NOTES[BFLOAT16] not in wide.notes
    assert mine.dtype == torch.float32


def test_any_chunking_gives_the_same_bfloat16_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, given = Predictor.capture(mlp(nn.Dropout(0.4)).eval(), features(3)), features(3)
    whole = predictor.predict(given, passes=9, precision="bfloat16").mean
    monkeypatch.setattr("service.run.measured", lambda: replace(measured(), cache_bytes=1))

    torch.testing.assert_close(
        predictor.predict(given, passes=9, precision="bfloat16").mean, whole, rtol=0.01, atol=0.01
    )


def test_other_precisions_are_refused_by_name() -> None:
    predictor = Predictor.capture(mlp(nn.Dropout(0.4)).eval(), features(3))

    with pytest.raises(BadRequest, match=r"precision = 'float16' is not served; the precisions are float32, bfloat16"):
        predictor.predict(features(3), precision="float16")


def test_tf32_is_refused_on_a_cpu_with_the_cure() -> None:
    predictor = Predictor.capture(mlp(nn.Dropout(0.4)).eval(), features(3))

    with pytest.raises(BadRequest, match=r"'tf32' is of GPUs, .* on the cpu; ask for float32 or bfloat16, or serve it"):
        predictor.predict(features(3), precision="tf32")


def rules() -> tuple[str, str]:
    """Return what products of matrices and convolutions run in on a GPU, after what torch checks when it exports."""
    with torch.backends.cudnn.flags(enabled=True):
        pass
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.mark.parametrize("chosen", ["none", "ieee", "tf32"])
def test_what_the_process_had_chosen_holds_again_afterwards(chosen: str, request: pytest.FixtureRequest) -> None:
    """torch takes TF32 for convolutions unasked, so float32 is a rule as well."""
    gpu, cpu, products = torch.device("cuda"), torch.device("cpu"), torch.backends.cuda.matmul
    request.addfinalizer(partial(setattr, products, "fp32_precision", products.fp32_precision))
    products.fp32_precision = chosen
    before = rules()
    with ruled(FLOAT32, gpu):
        assert set(rules()) <= {"ieee", "none"}
        assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        with ruled(TF32, gpu):
            assert rules() == ("tf32", "tf32")
        assert set(rules()) <= {"ieee", "none"}
    assert rules() == before
    with pytest.raises(ZeroDivisionError), ruled(TF32, gpu):
        1 / 0  # noqa: B018 # it fails
    assert rules() == before
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    with ruled(TF32, cpu):
        assert rules() == before


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_passes_on_what_they_keep_are_those_on_all_units(name: str, p: float) -> None:
    """The scale, 1 / 0.9, lies between steps of bfloat16: rounded into weights it would move every mean by 0.4 %."""
    network, variant = (wide(), "bernoulli") if name == "linear" else (wide_convolution(), "spatial")
    x = torch.rand(16, *((1, 8, 8) if name == "convolution" else (8,)))
    predictor = Predictor.capture(network.eval(), x[:2])
    plan = Compiled(predictor._captured, make_plan(predictor.sites, variant, p), "bfloat16")
    noises = plan._draw([tuple(x.shape)], Draw(0, 0, 64, None))
    values = plan.trunk((x,))[: len(plan._split.boundaries)]
    assert plan.thinned is not None
    with torch.inference_mode():
        mine, whole = plan.thinned.run(values, noises, 16)[0], RUNNERS[Mode.FOLDED](plan._split, values, noises, 16)[0]

    assert ((mine - whole).norm() / whole.norm()).item() < 0.01
    assert abs((mine.mean() / whole.mean()).item() - 1) < 1e-3


def wide() -> nn.Module:
    body = (nn.Linear(8, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 64), nn.ReLU())
    return positive(nn.Sequential(*body, nn.Linear(64, 3)))


def wide_convolution() -> nn.Module:
    body = (nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten())
    return positive(nn.Sequential(*body, nn.Linear(512, 3)))


def positive(network: nn.Module) -> nn.Module:
    """Make all weights positive, so that a scale that is off moves every output alike."""
    for parameter in network.parameters():
        parameter.data.abs_()
    return network
