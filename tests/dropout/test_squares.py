"""Variants and layers that drop squares of images: where the squares lie, and nothing that ties rows together."""

import warnings

import pytest
import squares
import torch
from bench import stream
from laws import SIGMAS, correlation, variance_error
from torch import Tensor, nn

from service.dropout import Cutout, Cutout2d, DropBlock, DropBlock2d, Kind, Variant
from service.errors import InvalidPlan

PASSES = 40_000
P = 0.1


def passes(variant: DropBlock | Cutout, x: Tensor) -> Tensor:
    """Return the passes of one image [S, C, H, W]."""
    return variant.apply(x[None], variant.draw(stream(PASSES), tuple(x.shape)))[:, 0].double()


def test_the_middle_is_dropped_far_more_often_than_a_corner() -> None:
    """14×14, side 7: the share of a map is 0.093, not p, and no position has it."""
    y = passes(DropBlock(P, 7.0), torch.ones(1, 14, 14))[:, 0]
    dropped = (y == 0).double().mean(0)
    expected = 1 - squares.kept(P, 7, 14, 14)

    assert DropBlock(P, 7.0).gamma(14, 14) == pytest.approx(0.00625)
    assert expected.mean().item() == pytest.approx(0.0929, abs=5e-5)
    assert expected[6, 6].item() == pytest.approx(0.2645, abs=5e-5)
    assert expected[0, 0].item() == pytest.approx(0.00625)
    assert ((dropped - expected).abs() <= SIGMAS * (expected * (1 - expected) / PASSES).sqrt()).all()


@pytest.mark.parametrize(("height", "width", "side"), [(14, 14, 7), (9, 5, 3), (4, 6, 7), (3, 3, 1)])
def test_what_is_dropped_is_whole_squares_inside_the_map(height: int, width: int, side: int) -> None:
    """A position stays zero exactly where some all-zero square covers it."""
    variant = DropBlock(0.3, float(side))
    y = variant.apply(torch.ones(1, 2, height, width), variant.draw(stream(300), (2, height, width)))
    dropped = (y[:, 0] == 0).double()
    shapes = squares.blocks(variant.block(height, width), height, width)
    whole = torch.einsum("schw,nhw->scn", dropped, shapes) == shapes.sum((1, 2))

    assert torch.equal(torch.einsum("scn,nhw->schw", whole.double(), shapes) > 0, dropped > 0)
    assert 0 < dropped.mean() < 1


@pytest.mark.parametrize("variant", [DropBlock(0.2, 3.0), DropBlock(0.2, 3.0, coupled=1.0), Cutout(3.0), Cutout(4.0)])
def test_positions_vary_together_as_their_squares_overlap(variant: DropBlock | Cutout) -> None:
    found = correlation(passes(variant, torch.ones(2, 5, 6)).flatten(1))
    expected = squares.correlation(variant, (2, 5, 6))

    assert (found - expected).abs().max() <= 2.5 * SIGMAS / PASSES**0.5
    assert expected.flatten().unique().numel() > 5


@pytest.mark.parametrize("even", [0.0, 1.0])
def test_dropblocks_moments_are_its_closed_forms_with_either_divisor(even: float) -> None:
    x = 0.5 + torch.rand(2, 8, 6)
    variant = DropBlock(0.2, 3.0, even=even)
    y, given = passes(variant, x), x.double()

    assert ((y.mean(0) - variant.mean(given)).abs() <= SIGMAS * (variant.variance(given) / PASSES).sqrt()).all()
    assert ((y.var(0) - variant.variance(given)).abs() <= SIGMAS * variance_error(y)).all()
    torch.testing.assert_close(variant.mean(given) / given, torch.ones_like(given) if not even else _shares(given))


def _shares(x: Tensor) -> Tensor:
    kept = squares.kept(0.2, 3, *x.shape[1:])
    return (kept / kept.mean()).expand_as(x)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 30])
def test_cutouts_moments_are_its_closed_forms_at_every_size(size: int) -> None:
    x = 0.5 + torch.rand(2, 8, 9)
    variant = Cutout(float(size))
    y, given = passes(variant, x), x.double()
    covered = squares.covered(min(size, 8), 8, 9)

    torch.testing.assert_close(variant.mean(given), (1 - covered) * given)
    assert ((y.mean(0) - variant.mean(given)).abs() <= SIGMAS * (variant.variance(given) / PASSES).sqrt() + 1e-7).all()
    assert ((y.var(0) - variant.variance(given)).abs() <= SIGMAS * variance_error(y)).all()
    assert (variant.variance(given) > 0).any()


def test_every_centre_is_as_frequent_as_every_other() -> None:
    """With a side of 1 the centre itself is seen: one zero a pass, in every channel at once."""
    holes = (passes(Cutout(1.0), torch.ones(3, 5, 7)) == 0).double()

    assert torch.equal(holes, holes[:, :1].expand_as(holes))
    assert (holes[:, 0].sum((1, 2)) == 1).all()
    assert ((holes[:, 0].mean(0) - 1 / 35).abs() <= SIGMAS * (1 / 35 * 34 / 35 / PASSES) ** 0.5).all()


def test_a_square_is_cut_off_at_the_border() -> None:
    """Side 4 around pixel y is y - 2 … y + 1, as in the authors' code: from 2 × 2 to 4 × 4 on 6 × 6, never moved in."""
    holes = passes(Cutout(4.0), torch.ones(1, 6, 6))[:, 0] == 0

    assert set(holes.any(2).sum(1).tolist()) == set(holes.any(1).sum(1).tolist()) == {2, 3, 4}
    assert torch.equal(holes, holes.any(2)[:, :, None] & holes.any(1)[:, None, :])


@pytest.mark.parametrize("size", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_what_is_no_side_is_refused(size: float) -> None:
    with pytest.raises(InvalidPlan, match=r"dropblock: block_size = .* is not a side; give a whole number above 0"):
        DropBlock(P, size)
    with pytest.raises(InvalidPlan, match=r"cutout: size = .* is not a side; give a whole number of pixels above 0"):
        Cutout(size)


@pytest.mark.parametrize("key", ["coupled", "even"])
def test_a_choice_is_0_or_1(key: str) -> None:
    with pytest.raises(InvalidPlan, match=rf"dropblock: {key} = 0\.5 is neither 0 nor 1"):
        DropBlock(**{key: 0.5})


def test_squares_need_a_height_and_a_width() -> None:
    assert not any(DropBlock().fits(Kind.HIDDEN, shape) for shape in [(8,), (8, 9), (2, 8, 9, 9)])
    assert not any(Cutout().fits(Kind.INPUT, shape) for shape in [(8,), (8, 9), (2, 8, 9, 9), (3, 1, 9)])
    assert DropBlock().fits(Kind.HIDDEN, (3, 1, 9))
    assert Cutout().fits(Kind.INPUT, (3, -1, -1))


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("even", [False, True])
def test_in_training_every_row_has_dropblocks_squares_of_its_own(coupled: bool, even: bool) -> None:
    variant = DropBlock(0.3, 3.0, float(coupled), float(even))
    one = torch.ones(2, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        y = DropBlock2d(0.3, 3, coupled, even).train()(one.float().expand(PASSES, -1, -1, -1)).double()

    assert ((y.mean(0) - variant.mean(one)).abs() <= SIGMAS * (variant.variance(one) / PASSES).sqrt()).all()
    found = correlation(y.flatten(1))
    assert (found - squares.correlation(variant, (2, 5, 4))).abs().max() <= 2.5 * SIGMAS / PASSES**0.5
    assert torch.corrcoef(torch.stack([y[1:, 0, 2, 2], y[:-1, 0, 2, 2]]))[0, 1].abs() <= SIGMAS / PASSES**0.5


def test_in_training_every_row_has_a_cutout_of_its_own() -> None:
    variant, one = Cutout(3.0), torch.ones(2, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        y = Cutout2d(3).train()(one.float().expand(PASSES, -1, -1, -1)).double()

    assert ((y.mean(0) - variant.mean(one)).abs() <= SIGMAS * (variant.variance(one) / PASSES).sqrt()).all()
    assert (correlation(y.flatten(1)) - squares.correlation(variant, (2, 5, 4))).abs().max() <= 2 * SIGMAS / 200
    assert torch.corrcoef(torch.stack([y[1:, 0, 2, 2], y[:-1, 0, 2, 2]]))[0, 1].abs() <= SIGMAS / PASSES**0.5


@pytest.mark.parametrize("layer", [DropBlock2d(0.4, 3), DropBlock2d(0.4, 3, even=True)])
def test_a_rows_training_output_does_not_depend_on_its_neighbours(layer: nn.Module) -> None:
    """The libraries' normaliser is a batch's: it would make a kept entry's scale depend on the other rows."""
    y = layer.train()(torch.ones(200, 3, 6, 6))
    scales = [position[position > 0].unique().numel() for position in y.flatten(2).movedim(2, 0)]

    assert set(scales) == {1}


@pytest.mark.parametrize("layer", [DropBlock2d(0.4, 3), Cutout2d(3)])
def test_in_eval_mode_it_is_the_identity_and_a_vector_is_refused(layer: nn.Module) -> None:
    x = torch.randn(3, 2, 6, 6)

    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(ValueError, match=rf"{type(layer).__name__} needs .* \[B, C, H, W\]; got the shape \(3, 2\)"):
        layer(x[:, :, 0, 0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [DropBlock2d(0.4, 3, coupled=True), Cutout2d(3)])
def test_an_exported_layer_is_one_node_that_holds_its_parameters(layer: nn.Module, training: bool) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        program = torch.export.export(nn.Sequential(layer).train(training), (torch.randn(4, 2, 6, 6),))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")
    given = (0.4, 3, True, False, training) if isinstance(layer, DropBlock2d) else (3, training)

    assert node.args[1:] == given
    assert torch.Tag.nondeterministic_seeded in node.target.tags


@pytest.mark.parametrize("layer", [DropBlock2d(0.4, 3), Cutout2d(3)])
def test_gradients_are_those_of_what_was_kept(layer: nn.Module) -> None:
    x = torch.ones(20, 2, 6, 6, requires_grad=True)
    y = layer.train()(x)
    y.sum().backward()

    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach())
    assert (x.grad == 0).any()


@pytest.mark.parametrize("variant", [DropBlock(P, 3.0), Cutout(3.0)], ids=lambda variant: variant.name)
def test_images_that_grow_keep_the_noise_of_the_positions_that_were_there(variant: Variant) -> None:
    numbers = stream(5)
    numbers = type(numbers)(0, "site", 0, 5, None, frozenset({1, 2}))
    small, large = variant.draw(numbers, (2, 5, 6)), variant.draw(numbers, (2, 8, 9))

    assert torch.equal(small, large[..., : small.shape[-2], : small.shape[-1]])
