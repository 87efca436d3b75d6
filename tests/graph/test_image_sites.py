"""Squares of images: which layers are claimed, which are refused, and where a request may put them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from moments import assert_same_moments
from specimen import image
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F
from zoo_images import TorchvisionDropBlock, maps

from service import Predictor
from service.dropout import Cutout2d, DropBlock, DropBlock2d, Kind
from service.errors import CaptureFailed, InvalidPlan, UnclaimedRandomness
from service.graph.capture import from_program

PASSES = 6000


def trained(predictor: Predictor) -> list[tuple[str, Kind, str | None, float | None, dict[str, float]]]:
    found = [site for site in predictor.sites if site.is_trained]
    return [(site.name, site.kind, site.variant, site.p, dict(site.parameters)) for site in found]


def test_our_layers_are_served_with_their_own_parameters_at_their_own_places() -> None:
    network = nn.Sequential(Cutout2d(4), *maps(DropBlock2d(0.3, 2, coupled=True)))
    own = {"block_size": 2.0, "coupled": 1.0, "even": 0.0}

    assert trained(Predictor.capture(network, image(2))) == [
        ("0.cutout", Kind.INPUT, "cutout", None, {"size": 4.0}),
        ("3", Kind.ACTIVATION, "dropblock", 0.3, own),
    ]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("p", "asked", "block"), [(0.3, 3, 3), (0.1, 7, 5)])
def test_torchvisions_layer_is_read_back_from_its_operations(p: float, asked: int, block: int, inplace: bool) -> None:
    predictor = Predictor.capture(maps(TorchvisionDropBlock(p, asked, inplace)), image(2))
    own = {"block_size": float(block), "coupled": 0.0, "even": 1.0}

    assert trained(predictor) == [("2", Kind.ACTIVATION, "dropblock", p, own)]
    assert not predictor.lost


def test_torchvisions_layer_in_place_is_the_same_network() -> None:
    (x,), answers = image(3), []
    for inplace in (False, True):
        torch.manual_seed(5)
        network = maps(TorchvisionDropBlock(inplace=inplace))
        answers.append(Predictor.capture(network, image(2)).predict(x, passes=7, quantities=["samples"]))

    one, other = (each.outputs["output"]["samples"] for each in answers)
    torch.testing.assert_close(one, other)
    assert bool((one.var(1) > 0).any())


def test_torchvisions_layer_survives_saving(tmp_path: Path) -> None:
    (x,) = image(3)
    predictor = Predictor.capture(maps(TorchvisionDropBlock()), x)
    loaded = Predictor.load(predictor.save(tmp_path / "model").parent)

    assert trained(loaded) == trained(predictor)
    torch.testing.assert_close(loaded.predict(x, passes=7).mean, predictor.predict(x, passes=7).mean)


def test_torchvisions_layer_is_served_as_it_trains_in_a_large_batch() -> None:
    network, (x,) = maps(TorchvisionDropBlock()).eval(), image(1)
    mine = Predictor.capture(network, image(2)).predict(x, passes=PASSES)
    with torch.no_grad():
        theirs = network.train()(x.expand(PASSES, -1, -1, -1))

    assert_same_moments(mine.mean[0], mine.variance[0], theirs)


@pytest.mark.parametrize("drop", [TorchvisionDropBlock(0.4), DropBlock2d(0.4, 3)])
def test_no_normaliser_ties_rows_together(drop: nn.Module) -> None:
    """In training torchvision's own layer changes a row's answer with the other rows; what is served never does."""
    predictor, (x,) = Predictor.capture(maps(drop), image(2)), image(3)
    others = torch.cat([x[:1], 10 * x[1:]])
    for scope in ("pass", "row"):
        asked = {"passes": 20, "scope": scope, "quantities": ["samples"]}
        mine, alone, beside = (
            predictor.predict(each, **asked).outputs["output"]["samples"][0] for each in (x, x[:1], others)
        )
        torch.testing.assert_close(mine, alone)
        torch.testing.assert_close(mine, beside)
    assert not predictor.couples_rows


def squares(x: Tensor, gamma: float = 0.05, block: int = 3) -> Tensor:
    """Return torchvision's mask."""
    rows, channels, height, width = x.shape
    noise = x.new_empty(rows, channels, height - block + 1, width - block + 1).bernoulli_(gamma)
    return 1 - F.max_pool2d(F.pad(noise, [block // 2] * 4), block, 1, block // 2)


def timm_fast(x: Tensor) -> Tensor:
    mask = 1 - F.max_pool2d(torch.empty_like(x).bernoulli_(0.05), 3, 1, 1)
    return x * mask * (mask.numel() / mask.to(dtype=torch.float32).sum().add(1e-6)).to(dtype=x.dtype)


def timm_exact(x: Tensor) -> Tensor:
    inside = F.pad(x.new_ones(1, 1, 3, 3), [1] * 4)
    kept = ((2 - 0.05 - inside + torch.rand_like(x)) >= 1).to(dtype=x.dtype)
    mask = -F.max_pool2d(-kept, 3, 1, 1)
    return x * mask * (mask.numel() / mask.to(dtype=torch.float32).sum().add(1e-7)).to(x.dtype)


def coupled_channels(x: Tensor) -> Tensor:
    """The usual third-party layer: one mask for all channels, seeds over the whole map."""
    seeds = (torch.rand(x.shape[0], *x.shape[2:]) < 0.05).float()
    mask = 1 - F.max_pool2d(seeds[:, None, :, :], 3, 1, 1).squeeze(1)
    return x * mask[:, None, :, :] * mask.numel() / mask.sum()


def unscaled(x: Tensor) -> Tensor:
    return x * squares(x)


def scaled_row_by_row(x: Tensor) -> Tensor:
    mask = squares(x)
    return x * mask * (mask[0].numel() / (1e-6 + mask.sum((1, 2, 3), keepdim=True)))


def scaled_by_another_count(x: Tensor) -> Tensor:
    mask = squares(x)
    return x * mask * (mask[:, :1].numel() / (1e-6 + mask.sum()))


def scaled_twice(x: Tensor) -> Tensor:
    mask = squares(x)
    return x * mask * (mask.numel() / (1e-6 + mask.sum())) * mask.mean()


def doubled(x: Tensor) -> Tensor:
    mask = torch.rsub(1 - squares(x), 1, alpha=2)
    return x * mask * (mask.numel() / (1e-6 + mask.sum()))


def one_channel_spread(x: Tensor) -> Tensor:
    """An image of one channel times a mask of several."""
    mask = squares(x)
    return x[:, :1] * mask * (mask.numel() / (1e-6 + mask.sum()))


def with_a_wide_margin(x: Tensor) -> Tensor:
    """Seeds in a smaller region than every square inside the map."""
    noise = x.new_empty(x.shape[0], x.shape[1], 1, 1).bernoulli_(0.3)
    mask = 1 - F.max_pool2d(F.pad(noise, [2] * 4), 3, 1, 1)
    return x * mask * (mask.numel() / (1e-6 + mask.sum()))


def filled_margin(x: Tensor) -> Tensor:
    noise = x.new_empty(x.shape[0], x.shape[1], 3, 3).bernoulli_(0.05)
    mask = 1 - F.max_pool2d(F.pad(noise, [1] * 4, value=1.0), 3, 1, 1)
    return x * mask * (mask.numel() / (1e-6 + mask.sum()))


def single_pixels(x: Tensor) -> Tensor:
    """Squares of one pixel: dropout."""
    mask = squares(x, 0.1, 1)
    return x * mask * (mask.numel() / (1e-6 + mask.sum()))


def more_than_all(x: Tensor) -> Tensor:
    """A γ whose p would be above 1."""
    mask = squares(x, 0.9)
    return x * mask * (mask.numel() / (1e-6 + mask.sum()))


def smoothed(x: Tensor) -> Tensor:
    """A large number in the normaliser."""
    mask = squares(x)
    return x * mask * (mask.numel() / (10.0 + mask.sum()))


class OnlyInTraining(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.training else x


ALMOST = (
    *(timm_fast, timm_exact, coupled_channels, unscaled, scaled_row_by_row, scaled_by_another_count, scaled_twice),
    *(with_a_wide_margin, filled_margin, more_than_all, smoothed, single_pixels, doubled, one_channel_spread),
)


@pytest.mark.parametrize("function", ALMOST, ids=lambda each: each.__name__)
def test_what_drops_squares_in_another_way_is_refused_with_the_layer_to_use(
    function: Callable[[Tensor], Tensor],
) -> None:
    says = r"aten\.(bernoulli_|rand).* in module '2' .*drops squares.* put thinnet's DropBlock2d in its place"
    with pytest.raises(UnclaimedRandomness, match=says):
        Predictor.capture(maps(OnlyInTraining(function)), image(2))


def test_the_function_that_is_refused_with_a_change_is_claimed_without_one() -> None:
    """The refusals above can fail: this is the pattern that each of them changes."""

    def plain(x: Tensor) -> Tensor:
        mask = squares(x)
        return x * mask * (mask.numel() / (1e-6 + mask.sum()))

    ((*_, variant, p, own),) = trained(Predictor.capture(maps(OnlyInTraining(plain)), image(2)))
    assert (variant, own["block_size"]) == ("dropblock", 3.0)
    assert p == pytest.approx(0.05 * 9 * 9 / 25)


def test_drop_path_before_pooling_is_still_drop_path() -> None:
    class Path(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            dropped = x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.7).div_(0.7) if self.training else x
            return F.max_pool2d(dropped, 3, 1, 1)

    assert [site[2] for site in trained(Predictor.capture(maps(Path()), image(2)))] == ["drop-path"]


class ChannelsLast(nn.Module):
    """A block of ConvNeXt: its linear layers see [B, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(1, 5, 2), nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1)
        result: Tensor = self.b(F.gelu(self.a(y))).mean((1, 2))
        return result


class PictureLast(nn.Module):
    """Images that come as [B, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x.permute(0, 3, 1, 2)).mean((2, 3))
        return result


@pytest.mark.parametrize(
    ("network", "shape", "variant"),
    [(ChannelsLast(), (1, 6, 6), "dropblock"), (PictureLast(), (6, 6, 6), "cutout")],
    ids=["channels last", "picture last"],
)
def test_three_axes_that_are_no_image_are_refused(network: nn.Module, shape: tuple[int, ...], variant: str) -> None:
    x = torch.randn(2, *shape)
    predictor = Predictor.capture(network, x)

    with pytest.raises(InvalidPlan, match=rf"site '(gelu|input)': '{variant}' takes images of channels, height and"):
        predictor.predict(x, variant=variant)


class Deep(nn.Module):
    """Images between which and the next convolution lie a sum, an activation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Dropout2d(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(torch.tanh(self.a(x) * 0.5 + x.expand(-1, 3, -1, -1)))
        return torch.relu(self.b(y)).mean((2, 3))


def test_images_are_known_through_sums_and_activations_and_a_trained_rate_stays() -> None:
    (x,) = image(2)
    predictor = Predictor.capture(Deep(), x)
    answer = predictor.predict(x, variant="dropblock", sites={"drop": {"block_size": 2}, "input": "cutout"})

    assert (answer.variance > 0).all()
    assert {site.name: site.p for site in predictor.sites if site.is_trained} == {"drop": 0.2}


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3)])
def test_what_a_pooling_layer_makes_is_an_image(pool: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), pool, nn.Dropout2d(0.2), nn.Flatten(), nn.LazyLinear(2))
    (x,) = image(2)
    network(x)

    assert (Predictor.capture(network, x).predict(x, variant="dropblock").variance > 0).all()


def test_frames_folded_into_the_rows_are_refused() -> None:
    class Frames(nn.Module):
        def __init__(self, drop: nn.Module) -> None:
            super().__init__()
            self.drop = drop

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x.flatten(0, 1)).mean((1, 2, 3)).unflatten(0, (-1, x.shape[1]))

    for drop in (DropBlock2d(), Cutout2d()):
        with pytest.raises(CaptureFailed, match="its first axis holds more than the rows; give it one image a row"):
            from_program(
                export(Frames(drop).train(), (torch.randn(3, 2, 1, 6, 6),), dynamic_shapes=({0: Dim("batch")},))
            )


@pytest.mark.parametrize("drop", [DropBlock2d(0.3, 3), Cutout2d(4)])
def test_images_of_any_size_are_served(drop: nn.Module) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.head = nn.Conv2d(1, 3, 2), drop, nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.drop(torch.relu(self.conv(x))).amax((2, 3)))
            return result

    network = Whole()
    shapes = ({0: Dim("batch"), 2: Dim("height", min=5), 3: Dim("width", min=5)},)
    with torch.no_grad():
        program = export(network.train(), (torch.randn(2, 1, 7, 6),), dynamic_shapes=shapes)
    predictor = Predictor(from_program(program))
    for height, width in ((5, 6), (9, 7)):
        x = torch.randn(1, 1, height, width)
        mine = predictor.predict(x, passes=PASSES)
        with torch.no_grad():
            theirs = network.train()(x.expand(PASSES, -1, -1, -1))
        assert_same_moments(mine.mean[0], mine.variance[0], theirs)


def test_a_square_can_be_larger_by_request_than_the_map() -> None:
    assert DropBlock(0.1, 99.0).block(4, 6) == 4
    assert DropBlock(0.1, 99.0).gamma(4, 4) == pytest.approx(0.1)
