"""Pooling layers as sites: stock ones by request against modules written by hand, ours as trained, and refusals."""

import copy
from collections.abc import Callable

import pytest
import torch
from modes import compare_modes
from moments import assert_same_moments
from specimen import WIDTH, features, image, sequence
from stock import stock
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

from service import Predictor
from service.dropout import (
    BY_NAME,
    Kind,
    MaskedMaxPool2d,
    MaxDrop2d,
    MaxPoolDropout2d,
    StochasticPool2d,
)
from service.errors import CaptureFailed, InvalidPlan
from service.graph.capture import from_program
from service.graph.compiled import Compiled
from service.graph.passes import Mode
from service.plan import make_plan

PASSES, P = 6000, 0.3


class ByHand(nn.Module):
    """What a variant makes of one max pooling, written without the service."""

    def __init__(self, pool: nn.MaxPool2d, variant: str) -> None:
        super().__init__()
        self.pool, self.variant = pool, variant

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == "max-pooling-dropout":
            return self.pool(x * (torch.rand_like(x) >= P))
        y: Tensor = self.pool(x)
        return y * (torch.rand_like(y) >= P) if self.variant == "masked-max-pooling" else self.drawn(x).view_as(y)

    def drawn(self, x: Tensor) -> Tensor:
        size, stride, padding = self.pool.kernel_size, self.pool.stride, self.pool.padding
        flat = F.unfold(x.flatten(0, 1)[:, None].clamp_min(0), size, padding=padding, stride=stride).mT.flatten(0, 1)
        chances = flat + (flat.sum(1, keepdim=True) == 0)
        return flat.gather(1, torch.multinomial(chances, 1))


def without_its_maxima(x: Tensor, over_channels: bool) -> Tensor:
    """Zero the largest entry of each map, or of each position over the channels, with probability P."""
    groups = x.permute(0, 2, 3, 1).flatten(0, 2) if over_channels else x.flatten(2).flatten(0, 1)
    dropped = torch.rand(len(groups)) < P
    groups = groups.clone()
    groups[dropped.nonzero()[:, 0], groups.argmax(1)[dropped]] = 0
    return groups.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2) if over_channels else groups.view_as(x)


@pytest.mark.parametrize("variant", ["max-pooling-dropout", "stochastic-pooling", "masked-max-pooling"])
@pytest.mark.parametrize("family", ["VGG-like CNN", "ResNet"])
def test_stock_max_poolings_by_request_are_those_written_by_hand(family: str, variant: str) -> None:
    network, x, predictor = stock(family)
    mine = predictor.predict(x, passes=PASSES, variant=variant, **({"p": P} if BY_NAME[variant].rated else {}))
    hooked = copy.deepcopy(network)
    pools = [name for name, child in network.named_children() if isinstance(child, nn.MaxPool2d)]
    for name in pools:
        setattr(hooked, name, ByHand(getattr(network, name), variant))
    with torch.no_grad():
        theirs = hooked(x.expand(PASSES, -1, -1, -1))

    assert [site.name for site in predictor.sites if site.kind is Kind.POOL] == pools != []
    assert_same_moments(mine.mean[0], mine.variance[0], theirs)


@pytest.mark.parametrize("over_channels", [False, True])
@pytest.mark.parametrize("family", ["VGG-like CNN", "ResNet"])
def test_max_drop_by_request_stands_at_every_map_of_a_stock_network(family: str, over_channels: bool) -> None:
    network, x, predictor = stock(family)
    variant = "max-drop-channel" if over_channels else "max-drop"
    mine = predictor.predict(x, passes=PASSES, variant=variant, p=P)
    hooked = copy.deepcopy(network)
    for child in [each for each in hooked.modules() if isinstance(each, nn.ReLU)]:
        child.register_forward_hook(lambda _, x, y: without_its_maxima(y, over_channels) if y.dim() == 4 else y)
    with torch.no_grad():
        theirs = hooked(x.expand(PASSES, -1, -1, -1))

    assert_same_moments(mine.mean[0], mine.variance[0], theirs)


TRAINED: dict[str, tuple[nn.Module, str, float | None]] = {
    "max-pooling dropout": (MaxPoolDropout2d(3, 2, 1, p=P), "max-pooling-dropout", P),
    "stochastic pooling": (StochasticPool2d(3, 2, 1), "stochastic-pooling", None),
    "masked max pooling": (MaskedMaxPool2d(3, 2, 1, p=P), "masked-max-pooling", P),
}


@pytest.mark.parametrize(("layer", "variant", "p"), TRAINED.values(), ids=TRAINED)
def test_a_trained_pooling_layer_is_served_as_trained(layer: nn.Module, variant: str, p: float | None) -> None:
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), layer, nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.linspace(-2, 2, 36).sin().reshape(1, 1, 6, 6)
    predictor = Predictor.capture(network, x)
    site = predictor.sites[0]
    mine = predictor.predict(x, passes=PASSES, quantities=["mean", "variance", "deterministic"])
    with torch.no_grad():
        network[2].train()
        theirs = network(x.expand(PASSES, -1, -1, -1))
        network.eval()

    assert (site.name, site.kind, site.shape, site.variant, site.p) == ("2", Kind.POOL, (3, 4, 4), variant, p)
    assert make_plan(predictor.sites) == {"2": BY_NAME[variant]() if p is None else BY_NAME[variant](p=p)}
    torch.testing.assert_close(mine.outputs["output"]["deterministic"], network(x).detach())
    assert_same_moments(mine.mean[0], mine.variance[0], theirs)


@pytest.mark.parametrize(("layer", "variant", "p"), TRAINED.values(), ids=TRAINED)
def test_another_pooling_at_a_trained_one_acts_on_its_input(layer: nn.Module, variant: str, p: float | None) -> None:
    x = torch.randn(1, 2, 6, 6).abs()
    mine = Predictor.capture(nn.Sequential(layer), x).predict(
        x, passes=PASSES, variant="off", sites={"0": {"variant": "masked-max-pooling", "p": P}}
    )
    theirs = ByHand(nn.MaxPool2d(3, 2, 1), "masked-max-pooling")(x.expand(PASSES, -1, -1, -1))

    assert_same_moments(mine.mean[0], mine.variance[0], theirs)


@pytest.mark.parametrize("over_channels", [False, True])
def test_a_trained_max_drop_is_served_as_trained(over_channels: bool) -> None:
    network = nn.Sequential(MaxDrop2d(P, over_channels), nn.Flatten(), nn.Linear(36, 3)).eval()
    x = torch.linspace(-2, 2, 36).sin().reshape(1, 1, 6, 6)
    predictor = Predictor.capture(network, x)
    (site,) = (each for each in predictor.sites if each.is_trained)
    mine = predictor.predict(x, passes=PASSES)
    with torch.no_grad():
        theirs = network[1:](without_its_maxima(x.expand(PASSES, -1, -1, -1), over_channels))

    assert (site.name, site.variant, site.p) == ("0", "max-drop-channel" if over_channels else "max-drop", P)
    assert_same_moments(mine.mean[0], mine.variance[0], theirs)


class Written(nn.Module):
    def __init__(self, function: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layer, self.head = function, layer, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def pools(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    return [site.name for site in Predictor.capture(module.eval(), inputs).sites if site.kind is Kind.POOL]


def test_a_pooling_function_is_named_after_itself() -> None:
    twice = Written(lambda m, x: m.head(F.max_pool2d(F.max_pool2d(x, 2, 1), 2).flatten(1)))

    assert pools(twice, image(2)) == ["max_pool", "max_pool#2"]


@pytest.mark.parametrize(
    "layer", [nn.AdaptiveMaxPool2d(2), nn.AvgPool2d(3), nn.AdaptiveAvgPool2d(2), nn.LPPool2d(2, 3)]
)
def test_other_poolings_are_no_sites(layer: nn.Module) -> None:
    assert pools(nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 2)), image(2)) == []


def test_a_pooling_whose_places_are_asked_for_is_no_site() -> None:
    module = Written(lambda m, x: m.head((lambda y, at: (y + at).flatten(1))(*F.max_pool2d(x, 3, return_indices=True))))

    assert pools(module, image(2)) == []


def test_a_pooling_of_whole_numbers_is_no_site() -> None:
    module = Written(lambda m, x: m.head(F.max_pool2d((x * 9).long(), 3).float().flatten(1)))

    assert pools(module, image(2)) == []


@pytest.mark.parametrize(("at", "size", "says"), [(3, 2, "is more than half of windows"), (2, None, "is computed")])
def test_a_window_that_no_layer_makes_is_refused_where_it_stands(at: int, size: int | None, says: str) -> None:
    with torch.no_grad():
        shapes = ({0: Dim("batch")},)
        program = export(nn.Sequential(StochasticPool2d(2)).train(), (torch.randn(2, 1, 6, 6),), dynamic_shapes=shapes)
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.thinnet.stochastic_pooling.default)
    with program.graph.inserting_before(node):
        computed = program.graph.call_function(torch.ops.aten.sym_size.int, (node.args[0], 2))
    node.update_arg(at, [computed if size is None else size] * 2)

    with pytest.raises(CaptureFailed, match=says):
        from_program(program)


def over_rows(module: Written, x: Tensor) -> Tensor:
    """Pool windows of one over [features, rows]."""
    pool = module.layer or nn.MaxPool2d(1)
    return module.head(pool(x.T[None, None])[0, 0].T[:, :4])


def test_a_pooling_over_rows_is_no_site() -> None:
    assert pools(Written(over_rows), features(2)) == []


def test_a_layer_that_pools_over_rows_is_refused() -> None:
    with pytest.raises(CaptureFailed, match="it pools over rows; put the batch on the first axis"):
        Predictor.capture(Written(over_rows, MaxPoolDropout2d(1)), features(2))


def test_a_pooling_whose_rows_cannot_be_told_apart_is_no_site_and_stays_itself() -> None:
    def rolled(m: Written, x: Tensor) -> Tensor:
        y = F.max_pool1d(x.flatten(0, 1).roll(1, 0)[:, None], 3)[:, 0].roll(-1, 0)
        return m.head(torch.cat([y, y], 1)).view(x.shape[0], -1)

    module, inputs = Written(rolled).eval(), sequence(2)
    predictor = Predictor.capture(module, inputs)
    found = predictor.predict(inputs, passes=2, variant="dropconnect", quantities=["deterministic"])

    assert [site.name for site in predictor.sites] == ["head.weight", "input"]
    torch.testing.assert_close(found.outputs["output"]["deterministic"], module(*inputs).detach())


def test_max_drop_of_frames_is_refused() -> None:
    frames = Written(lambda m, x: m.layer(x.flatten(0, 1)).flatten(1).view(x.shape[0], -1), MaxDrop2d())

    with pytest.raises(CaptureFailed, match="its first axis holds more than the rows; give max-drop one map a row"):
        Predictor.capture(frames, torch.randn(2, 2, 1, 3, 3))


def test_max_drop_goes_to_no_site_without_maps() -> None:
    predictor = Predictor.capture(nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, 2)), features(2))

    with pytest.raises(InvalidPlan, match="variant 'max-drop' fits none of the sites"):
        predictor.predict(features(1), passes=2, variant="max-drop")


@pytest.mark.parametrize("variant", ["max-pooling-dropout", "stochastic-pooling", "masked-max-pooling", "max-drop"])
def test_poolings_of_a_stock_network_run_folded_and_alike_in_every_way(variant: str) -> None:
    _, x, predictor = stock("ResNet")
    compiled = Compiled(predictor._captured, make_plan(predictor.sites, variant))

    compare_modes(compiled, predictor._captured, (torch.cat([x, -x, x.flip(2)]),))
    assert compiled.mode(per_row=False) is compiled.mode(per_row=True) is Mode.FOLDED


@pytest.mark.parametrize("layer", [MaxPoolDropout2d((1, 2), 1), StochasticPool2d((1, 2), 1), nn.MaxPool2d((1, 2), 1)])
@pytest.mark.parametrize("scope", ["pass", "row"])
def test_a_longer_sequence_leaves_the_noise_of_the_windows_that_were_there(layer: nn.Module, scope: str) -> None:
    x = torch.randn(3, 2, WIDTH, 7)
    with torch.no_grad():
        shapes = ({0: Dim("batch"), 3: Dim("length", min=3, max=100)},)
        program = export(nn.Sequential(layer).train(), (x,), dynamic_shapes=shapes)
    asked = {"passes": 5, "scope": scope, "quantities": ["samples"]}
    asked |= {"variant": "masked-max-pooling"} if isinstance(layer, nn.MaxPool2d) else {}
    predictor = Predictor(from_program(program))
    whole = predictor.predict(x, **asked).outputs["output"]["samples"]

    assert whole.shape[2:] == (2, WIDTH, 6)
    assert bool(whole.var(1).any())
    for length in (3, 5):
        part = predictor.predict(x[..., :length], **asked).outputs["output"]["samples"]
        torch.testing.assert_close(part, whole[..., : length - 1])
