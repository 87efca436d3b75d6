"""Masksembles: masks made as the paper makes them, pass t under mask t, and nothing else."""

from itertools import pairwise

import pytest
import torch
from bench import stream
from torch import nn

from service import Predictor
from service.dropout import Kind, Masksembles, Masksembles1d, Masksembles2d
from service.dropout.masksembles import make_masks
from service.errors import BadRequest, CaptureFailed, InvalidPlan

SIZES = [(4, 2.0, 10), (4, 2.0, 64), (8, 3.0, 512), (2, 1.5, 100), (16, 6.0, 300)]


@pytest.mark.parametrize(("n", "scale", "units"), SIZES)
def test_masks_are_binary_cover_every_unit_and_are_about_equally_full(n: int, scale: float, units: int) -> None:
    masks = make_masks(n, scale, units)
    paper = int(units / (scale * (1 - (1 - 1 / scale) ** n)))

    assert masks.shape == (n, units)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.any(0).all()
    assert ((masks.sum(1) - paper).abs() <= max(2, 0.15 * paper)).all()


def test_a_larger_scale_lets_masks_overlap_less() -> None:
    shared = [(make_masks(4, scale, 200).sum(0) > 1).sum().item() for scale in (1.0, 1.5, 2.0, 3.0, 6.0)]

    assert shared[0] == 200
    assert all(a > b for a, b in pairwise(shared))


def test_masks_overlap_as_independent_ones_do() -> None:
    """Two masks of m ones among m s places share m / s of them."""
    masks = make_masks(4, 2.0, 2000)
    shared = masks @ masks.T / masks.sum(1)

    assert ((shared[~torch.eye(4, dtype=torch.bool)] - 0.5).abs() < 0.06).all()


def test_masks_depend_on_their_sizes_alone() -> None:
    torch.manual_seed(1)
    first = make_masks.__wrapped__(4, 2.0, 64)
    torch.manual_seed(2)

    assert torch.equal(first, make_masks.__wrapped__(4, 2.0, 64))
    assert not torch.equal(first, make_masks(4, 2.01, 64))


def test_pass_t_is_mask_t_whatever_the_seed_the_row_and_the_grouping() -> None:
    variant, masks = Masksembles(4, 2.0), make_masks(4, 2.0, 12)
    whole = variant.draw(stream(4), (12,))

    assert torch.equal(whole, masks[:, None])
    assert torch.equal(whole, variant.draw(stream(4, seed=9), (12,)))
    assert torch.equal(variant.draw(stream(2, first=1), (12,)), masks[1:3, None])
    assert torch.equal(
        variant.draw(stream(4, range(3)), (12, 5, 5)), masks[:, None, :, None, None].expand(-1, 3, -1, 1, 1)
    )


def test_mean_and_variance_are_the_populations() -> None:
    x = 0.5 + torch.rand(3, 12, 2, 2, dtype=torch.float64)
    variant = Masksembles(4, 2.0)
    passes = variant.apply(x, variant.draw(stream(4), (12, 2, 2)).double())

    torch.testing.assert_close(variant.mean(x), passes.mean(0))
    torch.testing.assert_close(variant.variance(x), passes.var(0, correction=0))


@pytest.mark.parametrize(("n", "scale"), [(1, 2.0), (2.5, 2.0), (4, 0.9), (4, 6.1), (float("nan"), 2.0)])
def test_what_makes_no_masks_is_refused(n: float, scale: float) -> None:
    with pytest.raises(InvalidPlan, match=r"masksembles: (n|scale) = "):
        Masksembles(n, scale)


def test_too_few_units_fit_no_masks() -> None:
    assert not Masksembles().fits(Kind.ACTIVATION, (9,))
    assert not Masksembles().fits(Kind.ACTIVATION, (20, 16))
    assert Masksembles().fits(Kind.ACTIVATION, (10,))
    assert Masksembles().fits(Kind.ACTIVATION, (10, 4, 4))
    with pytest.raises(InvalidPlan, match="9 units are too few"):
        Masksembles1d(9)


@pytest.mark.parametrize("layer", [Masksembles1d, Masksembles2d])
def test_in_training_each_part_of_the_batch_has_a_mask_of_its_own(layer: type[Masksembles1d]) -> None:
    module = layer(12, 4)
    x = torch.ones(8, 12, *[2, 2] * (module.axes == 4))
    y = module.train()(x)

    expected = module.masks.repeat_interleave(2, 0)
    assert torch.equal(y, expected.reshape(8, 12, *[1] * (x.dim() - 2)).expand_as(x))
    assert torch.equal(module.eval()(x), x)


def network(drop: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), drop, nn.Linear(12, 3)).eval()


def by_hand(module: nn.Sequential, x: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the ensemble's answers [n, B, 3]."""
    with torch.no_grad():
        return torch.stack([module[3](torch.relu(module[0](x)) * mask) for mask in masks])


@pytest.mark.parametrize("scope", ["pass", "row"])
def test_a_trained_layer_is_served_as_its_whole_ensemble(scope: str) -> None:
    module, x = network(Masksembles1d(12, 5, 1.8)), torch.randn(3, 6)
    predictor = Predictor.capture(module, x)
    answer = predictor.predict(x, scope=scope, quantities=["samples"])
    expected = by_hand(module, x, make_masks(5, 1.8, 12))

    assert answer.passes == 5
    assert predictor.sites[0].parameters == (("n", 5.0), ("scale", 1.8))
    torch.testing.assert_close(answer.outputs["output"]["samples"].movedim(1, 0), expected)
    torch.testing.assert_close(answer.variance, expected.var(0))


def test_stock_dropout_overridden_is_the_ensemble_by_hand() -> None:
    module, x = network(nn.Dropout(0.3)), torch.randn(3, 6)
    answer = Predictor.capture(module, x).predict(x, variant="masksembles", sites={"2": {"n": 6, "scale": 1.5}})
    expected = by_hand(module, x, make_masks(6, 1.5, 12))

    assert answer.passes == 6
    torch.testing.assert_close(answer.mean, expected.mean(0))
    torch.testing.assert_close(answer.variance, expected.var(0))


def test_channels_of_a_map_have_one_mask_for_all_places() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(1, 12, 3), Masksembles2d(12), nn.Flatten()).eval()
    x = torch.randn(2, 1, 5, 5)
    answer = Predictor.capture(module, x).predict(x, quantities=["samples"])
    with torch.no_grad():
        expected = (module[0](x)[None] * make_masks(4, 2.0, 12)[:, None, :, None, None]).flatten(2)

    torch.testing.assert_close(answer.outputs["output"]["samples"].movedim(1, 0), expected)


def test_another_number_of_passes_is_refused() -> None:
    x = torch.randn(2, 6)
    predictor = Predictor.capture(network(Masksembles1d(12)), x)

    with pytest.raises(BadRequest, match="passes = 100, but this plan is an ensemble of 4 fixed masks; ask for 4"):
        predictor.predict(x, passes=100)
    assert predictor.predict(x, passes=4).passes == 4


def test_masks_from_elsewhere_are_refused() -> None:
    layer = Masksembles1d(12)
    layer.masks[0] = 1

    with pytest.raises(CaptureFailed, match=r"its masks are not those made for n = 4 and scale = 2\.0"):
        Predictor.capture(network(layer), torch.randn(2, 6))


def test_ensembles_of_two_sizes_in_one_plan_are_refused() -> None:
    x = torch.randn(2, 12)
    module = nn.Sequential(Masksembles1d(12, 4), nn.Linear(12, 12), Masksembles1d(12, 5))

    with pytest.raises(InvalidPlan, match="sites need different numbers of passes"):
        Predictor.capture(module, x).predict(x)
