"""Networks trained with a layer of its own state serve what the layer was trained with."""

import pytest
import torch
from specimen import WIDTH, features, mlp
from torch import Tensor, nn

from service import Predictor
from service.dropout import (
    Concrete,
    ConcreteDropout,
    LayerDropPath,
    ShakeDropPath,
    ShakeShakeMix,
    StandoutGate,
    StandoutLinear,
)
from service.errors import CaptureFailed, InvalidPlan


class Branch(nn.Module):
    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.a, self.path = nn.Linear(WIDTH, WIDTH), path

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(self.a(x))


def samples(predictor: Predictor, inputs: tuple[Tensor, ...], **plan: object) -> Tensor:
    """Return the passes of the one output [S, B, …]."""
    found = predictor.predict(inputs, passes=4000, quantities=["samples"], **plan)  # type: ignore[arg-type] # a plan
    return found.outputs["output"]["samples"].movedim(1, 0).double()


def test_a_learned_rate_is_read_from_the_parameter_and_the_temperature_from_the_layer() -> None:
    layer = ConcreteDropout(0.1, 0.25)
    with torch.no_grad():
        layer.p_logit.fill_(torch.logit(torch.tensor(0.37)))
    site = Predictor.capture(mlp(layer), features(2)).sites[0]

    assert (site.name, site.variant) == ("2", "concrete")
    assert site.p == pytest.approx(0.37)
    assert site.parameters == (("t", 0.25),)


def test_the_trained_temperature_is_served_and_can_be_overridden() -> None:
    module = nn.Sequential(nn.Identity(), ConcreteDropout(0.3, 2.0))
    predictor, x = Predictor.capture(module, features(2)), features(1)

    for plan, t in (({}, 2.0), ({"variant": "concrete"}, 2.0), ({"sites": {"1": {"t": 0.5}}}, 0.5)):
        y = samples(predictor, x, **plan)
        variant = Concrete(0.3, t)
        torch.testing.assert_close(y.mean(0), variant.mean(x[0].double()), rtol=0.1, atol=1e-6)
        torch.testing.assert_close(y.var(0), variant.variance(x[0].double()), rtol=0.15, atol=1e-6)


def test_bernoulli_at_a_concrete_site_is_the_hard_option_at_the_learned_rate() -> None:
    predictor, x = Predictor.capture(nn.Sequential(ConcreteDropout(0.3)), features(2)), features(1)
    y = samples(predictor, x, variant="bernoulli") / x[0]

    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7), rtol=1e-5, atol=0)
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)


def test_stock_dropout_served_as_concrete_is_a_hand_written_modules_noise() -> None:
    module, x = mlp(nn.Dropout(0.3)), features(1)
    mine = samples(Predictor.capture(module, features(2)), x, variant="concrete")
    with torch.no_grad():
        hidden = module[1](module[0](x[0])).expand(4000, -1)
        u = torch.rand(hidden.shape)
        z = 1 - torch.sigmoid((torch.logit(torch.tensor(0.3)) + torch.logit(u)) / 0.1)
        theirs = module[3](hidden * z / 0.7).double()[:, None]

    error = ((mine.var(0) + theirs.var(0)) / 4000).sqrt()
    assert ((mine.mean(0) - theirs.mean(0)).abs() <= 5 * error).all()
    torch.testing.assert_close(mine.var(0), theirs.var(0), rtol=0.2, atol=0)


def test_a_temperature_out_of_range_is_refused_at_its_site() -> None:
    predictor = Predictor.capture(mlp(nn.Dropout(0.3)), features(2))

    with pytest.raises(InvalidPlan, match=r"site '2': concrete: t = 0.0 is not a temperature"):
        predictor.predict(features(1), passes=2, sites={"2": {"variant": "concrete", "t": 0.0}})


def test_layer_drop_serves_the_branch_whole_or_not_at_all() -> None:
    module = Branch(LayerDropPath(0.3)).eval()
    x = features(3)
    y = samples(Predictor.capture(module, features(2)), x)
    whole = (y - module(x[0]).detach()).abs().amax((1, 2)) < 1e-5
    none = (y - x[0]).abs().amax((1, 2)) < 1e-6

    assert torch.equal(whole, ~none)
    assert none.double().mean().item() == pytest.approx(0.3, abs=0.04)


def test_shake_drop_serves_the_papers_factor_on_the_branch() -> None:
    module, x = Branch(ShakeDropPath(0.3)).eval(), features(1)
    y = samples(Predictor.capture(module, features(2)), x)
    with torch.no_grad():
        factor = ((y - x[0]) / module.a(x[0]))[:, 0, 0]

    kept = (factor - 1).abs() < 1e-4
    assert kept.double().mean().item() == pytest.approx(0.7, abs=0.04)
    assert -1.0001 < factor[~kept].min() < -0.98 < 0.98 < factor[~kept].max() < 1.0001


def test_standout_serves_every_unit_by_its_own_pre_activation() -> None:
    module = nn.Sequential(StandoutLinear(WIDTH, 5, torch.tanh, 1.5, -0.3)).eval()
    predictor, x = Predictor.capture(module, features(2)), features(1)
    (site,) = (each for each in predictor.sites if each.is_trained)
    y = samples(predictor, x)[:, 0]
    with torch.no_grad():
        u = nn.functional.linear(x[0], module[0].weight, module[0].bias)[0].double()
    kept = torch.sigmoid(1.5 * u - 0.3)

    assert (site.variant, site.p, site.parameters) == ("standout", None, (("alpha", 1.5), ("beta", -0.3)))
    torch.testing.assert_close(y, torch.where(y == 0, 0.0, torch.tanh(u)))
    assert (((y != 0).double().mean(0) - kept).abs() <= 5 * (kept * (1 - kept) / 4000).sqrt()).all()


def test_shake_shake_serves_the_branches_mixed_by_one_share_for_a_pass() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = ShakeShakeMix()

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x, 2 * x + 1)

    x = features(3)
    y = samples(Predictor.capture(Mixed(), features(2)), x)
    share = ((2 * x[0] + 1 - y) / (x[0] + 1)).flatten(1)

    torch.testing.assert_close(share, share[:, :1].expand_as(share), rtol=0, atol=1e-3)
    assert share[:, 0].mean().item() == pytest.approx(0.5, abs=0.03)
    assert share[:, 0].var().item() == pytest.approx(1 / 12, rel=0.1)


def test_a_rate_for_a_variant_that_has_none_is_refused() -> None:
    predictor = Predictor.capture(nn.Sequential(StandoutLinear(WIDTH, 5)), features(2))

    with pytest.raises(InvalidPlan, match=r"standout has no parameter 'p'; it has alpha, beta"):
        predictor.predict(features(1), passes=2, p=0.3)


def test_no_other_variant_takes_a_site_with_an_eval_form_of_its_own() -> None:
    predictor = Predictor.capture(nn.Sequential(StandoutLinear(WIDTH, 5)), features(2))
    (site,) = (each.name for each in predictor.sites if each.is_trained)

    assert predictor.fitting(site) == ("standout",)


def test_tensors_of_two_shapes_at_one_site_are_refused() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = StandoutGate()

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(x[:, :1], x)

    with pytest.raises(CaptureFailed, match="its two tensors differ in shape"):
        Predictor.capture(Uneven(), features(2))
