"""On a device that kernels serve, every site that takes plain operators is named once, with the reason."""

from collections import Counter as Tally
from collections.abc import Callable

import pytest
import torch
from specimen import Specimen, captured, features
from torch import Tensor, nn
from zoo import ZOO

from service import Predictor
from service.dropout import VARIANTS, Variant
from service.graph.compiled import Compiled
from service.graph.forms import Counted
from service.graph.passes import Mode
from service.graph.precision import BFLOAT16, FLOAT32
from service.plan import fitting, make_plan

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

NAMED = {each.name: each for each in ZOO}
NETWORKS = (
    Specimen("ten units", lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 2)), features),
    *(NAMED["dropout"], NAMED["spatial concrete dropout layer"], NAMED["spatial dropout, then batch norm"]),
    *(NAMED["spatial dropout, batch on axis 2"], NAMED["transformer encoder"], NAMED["lstm between layers"]),
    *(NAMED["sparse variational layer"], NAMED["dropped words"], NAMED["drop path (timm)"], NAMED["shake-shake"]),
    NAMED["standout layers"],
)


@pytest.fixture(autouse=True)
def _kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.graph.kernels.DEVICES", {"cpu"})


@pytest.fixture
def _untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.graph.compiled.Compiled._kernel_fault", lambda self: None)


def is_counted(variant: Variant) -> bool:
    return isinstance(variant, Counted)


def fits(specimen: Specimen, variant: str) -> bool:
    return any(variant in fitting(site) for site in captured(specimen).sites)


def compiled_as(predictor: Predictor, variant: str | None, **asked: object) -> Compiled:
    return Compiled(predictor._captured, make_plan(predictor.sites, variant, **asked))  # type: ignore[arg-type] # a request's


@pytest.mark.usefixtures("_untried")
@pytest.mark.parametrize("variant", [each.name for each in VARIANTS])
def test_every_plain_site_is_named_once_and_no_other_is(variant: str) -> None:
    compiled = compiled_as(captured(next(each for each in NETWORKS if fits(each, variant))), variant)
    told = [each.split(": plain operators stand in for kernels: ") for each in compiled.notes if "kernels: " in each]
    named, reasons = Tally(site for sites, _ in told for site in sites.split(", ")), [why for _, why in told]
    plain = Tally(noise.site for noise in compiled._fast.noises if not is_counted(noise.variant))

    assert compiled._fast.noises
    assert named == plain
    assert len(set(reasons)) == len(reasons)
    assert all(why.startswith(("they ", "passes ")) for why in reasons)


@pytest.mark.usefixtures("_untried")
def test_a_variant_that_no_kernel_makes_is_named() -> None:
    predictor = captured(NETWORKS[0])

    assert compiled_as(predictor, "masksembles").notes == (
        "2: plain operators stand in for kernels: they make no masksembles noise",
    )
    assert compiled_as(predictor, "trained").notes == ()


def convolving() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(9, 2)).eval()


def made(build: Callable[[], nn.Module], x: Tensor) -> Predictor:
    return Predictor.capture(build(), (x,))


@pytest.mark.usefixtures("_untried")
def test_each_site_has_the_reason_that_is_its_own() -> None:
    """A convolution's masks meet no rows, so the sites beside it, which kernels would serve, run plainly too."""
    predictor = made(convolving, torch.randn(3, 2, 4))
    said = "plain operators stand in for kernels"

    assert compiled_as(predictor, "dropconnect", overrides={"2": "bernoulli"}).notes == (
        f"2, 4.weight: {said}: passes do not fold into the rows, which the noise of 0.weight does not meet",
        f"0.weight: {said}: they serve no weights of convolutions",
    )
    assert compiled_as(predictor, "bernoulli", overrides={"2": {"variant": "concrete", "t": 0.01}}).notes == (
        f"2: {said}: they make no concrete noise with these parameters",
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("network", ZOO, ids=repr)
def test_kernels_that_are_tried_on_the_zoo_serve_it(network: Specimen, precision: str) -> None:
    predictor = captured(network)
    compiled = Compiled(predictor._captured, make_plan(predictor.sites), precision)

    assert compiled._fault == ("with them passes do not run folded but looped" if network.coupled else None)
    if any(is_counted(noise.variant) for noise in compiled._fast.noises):
        assert {compiled.mode(per_row) for per_row in (False, True)} == {Mode.FOLDED}
