"""Passes on the units that they keep: the same as the whole graph, pass by pass, and thinner."""

import random
import time
from collections.abc import Iterator

import pytest
import torch
from specimen import Specimen, captured
from torch import Tensor, nn
from zoo import ZOO

from service import Predictor
from service.dropout import VARIANTS
from service.dropout.variant import ActivationVariant
from service.graph import compiled, kept
from service.graph.compiled import Compiled
from service.graph.drawing import Draw, draw_noises
from service.graph.kept import kept_units
from service.graph.rates import Rates, measure
from service.graph.thinning import Thinned
from service.graph.thinning_cost import better_whole, pays
from service.plan import Override, make_plan

PASSES = 5
THINNED = ("functional dropout", "in-place layers in a row", "in-place spatial dropout", "linear twice", "two heads")
ZEROING = [variant for variant in VARIANTS if issubclass(variant, ActivationVariant) and variant.zeroes]


def thinned_against_whole(predictor: Predictor, plan: Compiled, inputs: tuple[Tensor, ...], passes: int) -> None:
    thinned, rewritten, rows = plan.thinned, plan._rewritten, len(inputs[0])
    assert thinned is not None
    shapes, draw = [tuple(each.shape) for each in inputs], Draw(3, 0, passes, None)
    noises = draw_noises(rewritten.noises, predictor._captured.symbols, shapes, draw, inputs[0].device)
    with torch.inference_mode():
        whole = [rewritten.module(*inputs, rows, *(noise[t] for noise in noises)) for t in range(passes)]
        found = thinned.run(plan.trunk(inputs)[: len(plan._split.boundaries)], noises, rows)
    expected = [
        torch.stack(each) for each, noisy in zip(zip(*whole, strict=True), plan.stochastic, strict=True) if noisy
    ]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def compiled_with(predictor: Predictor, variant: str = "trained", p: float | None = None) -> Compiled:
    return Compiled(predictor._captured, make_plan(predictor.sites, variant, p))


def plans(predictor: Predictor) -> Iterator[Compiled]:
    if any(site.is_trained for site in predictor.sites):
        yield compiled_with(predictor)
    for variant in ZEROING:
        if any(variant.name in predictor.fitting(site.name) for site in predictor.sites):
            yield from (compiled_with(predictor, variant.name, p) for p in ((0.3, 0.7) if variant.rated else (None,)))


def test_each_pass_is_the_whole_graphs(specimen: Specimen, predictor: Predictor) -> None:
    for plan in plans(predictor):
        if plan.thinned is not None:
            for rows in (1, 4) if not specimen.coupled else (4,):
                thinned_against_whole(predictor, plan, specimen.inputs(rows), PASSES)


@pytest.mark.parametrize("name", THINNED)
def test_these_of_the_zoo_are_thinned(name: str) -> None:
    specimen = next(each for each in ZOO if each.name == name)
    assert compiled_with(captured(specimen)).thinned is not None


def chain(generator: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """Make a random chain of layers that may or may not be thinned, and the shape of its rows."""
    between = [nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.Sigmoid, nn.Identity, nn.Softplus]
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(generator.randint(1, 3)):
        width = generator.choice([4, 16, 33])
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=generator.random() < 0.7)]
        extras = [nn.BatchNorm2d(width), generator.choice(between)(), nn.MaxPool2d(3, 1, 1), nn.Dropout2d(0.4)]
        extras += [nn.Dropout(0.3), nn.AvgPool2d(3, 1, 1), nn.Conv2d(width, width, 1, groups=width), nn.Softmax(1)]
        layers += generator.sample(extras, generator.randint(1, 5))
        channels = width
    layers += [
        nn.Dropout2d(0.5),
        generator.choice([nn.Flatten(), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())]),
    ]
    for _ in range(generator.randint(1, 3)):
        layers += [nn.LazyLinear(generator.choice([5, 20, 65])), generator.choice(between)()]
        extras = [nn.LazyBatchNorm1d(), nn.Dropout(0.5), generator.choice(between)(), nn.Dropout(0.2)]
        layers += generator.sample(extras, generator.randint(1, 4))
    network = nn.Sequential(*layers, nn.LazyLinear(3))
    network(torch.randn(4, 3, 4, 4))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean), torch.nn.init.uniform_(module.weight, 0.5, 2)  # type: ignore[arg-type] # they are there
            torch.nn.init.uniform_(module.bias)
    return network.eval(), (3, 4, 4)


def each_layers(predictor: Predictor) -> dict[str, Override]:
    """Give every dropout layer what fits it; after a softmax a map counts as attention, which has no channels."""
    trained = {site.name: site for site in predictor.sites if site.is_trained}
    return {
        name: {"variant": site.variant if site.variant in predictor.fitting(name) else "bernoulli", "p": site.p}
        for name, site in trained.items()
    }


@pytest.mark.parametrize("seed", range(12))
def test_random_chains_are_the_whole_graphs(seed: int) -> None:
    network, shape = chain(random.Random(seed))
    predictor = Predictor.capture(network, torch.randn(2, *shape))
    plan = Compiled(predictor._captured, make_plan(predictor.sites, "off", overrides=each_layers(predictor)))
    assert plan.thinned is not None
    thinned_against_whole(predictor, plan, (torch.randn(3, *shape),), PASSES)


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 3)
    )


def test_rows_and_columns_are_those_that_survive() -> None:
    predictor = Predictor.capture(wide(), torch.randn(2, 8))
    thinned = compiled_with(predictor).thinned
    assert thinned is not None
    assert thinned.sites == (True, True)
    assert [(each.inputs, each.outputs) for each in thinned.products] == [(0, 1), (1, None)]


@pytest.mark.parametrize("p", [0.01, 0.5, 0.999])
def test_hardly_any_or_nearly_all_units_may_be_dropped(p: float) -> None:
    predictor = Predictor.capture(wide(), torch.randn(2, 8))
    thinned_against_whole(predictor, compiled_with(predictor, p=p), (torch.randn(3, 8),), 20)


def test_units_that_fill_up_a_step_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_STEP", 4)
    noise = torch.zeros(2, 1, 64)
    noise[0, 0, [3, 5, 60]] = 2.0
    first, second = kept_units(noise)
    assert first.index[:3].tolist() == [3, 5, 60]
    assert first.scale.tolist() == [2, 2, 2, 0]
    assert second.scale.tolist() == [0, 0, 0, 0]


def test_only_some_sites_may_be_thinned() -> None:
    predictor = Predictor.capture(wide(), torch.randn(2, 8))
    overrides: dict[str, Override] = {"2": "gaussian"}
    plan = Compiled(predictor._captured, make_plan(predictor.sites, overrides=overrides))
    assert plan.thinned is not None
    assert plan.thinned.sites == (False, True)
    thinned_against_whole(predictor, plan, (torch.randn(3, 8),), PASSES)


def served(predictor: Predictor, rows: int, passes: int = 4) -> Tensor:
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(1))
    samples = predictor.predict(x, passes=passes, quantities=["samples"])["samples"]
    assert isinstance(samples, Tensor)
    return samples


def test_what_is_served_is_thinned_where_it_pays_and_the_same_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.capture(wide(), torch.randn(2, 8))
    runs = []
    run = Thinned.run
    monkeypatch.setattr(Thinned, "run", lambda self, *given: runs.append(1) or run(self, *given))
    monkeypatch.setattr(compiled, "pays", lambda *given: True)
    thinned = served(predictor, 6)
    assert len(runs) > 1, "the self-check's and the answer's"
    predictor._preparation.clear()
    monkeypatch.setattr(compiled, "pays", lambda *given: False)
    plain = served(predictor, 6)
    torch.testing.assert_close(thinned, plain, rtol=1e-5, atol=1e-6)


def test_a_thinned_suffix_that_differs_from_the_whole_graph_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.capture(wide(), torch.randn(2, 8))
    expected = served(predictor, 5)
    predictor._preparation.clear()
    run = Thinned.run
    monkeypatch.setattr(Thinned, "run", lambda self, *given: [each + 1e-2 for each in run(self, *given)])
    monkeypatch.setattr(compiled, "pays", lambda *given: True)
    torch.testing.assert_close(served(predictor, 5), expected, rtol=1e-5, atol=1e-6)
    plan = compiled_with(predictor)
    assert plan.thinned is not None
    plan.mode(per_row=False)
    assert plan.thinned is None


def test_many_wide_rows_pay_and_one_row_does_not() -> None:
    """By the rates of a common machine: 40 G operations, 5 G gathered and 10 G written elements each second."""
    network = nn.Sequential(
        nn.Linear(8, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, 3),
    )
    predictor, rates = Predictor.capture(network, torch.randn(2, 8)), Rates(4e10, 5e9, 1e10, 1.5e-6, 1 << 24)
    thinned = compiled_with(predictor).thinned
    assert thinned is not None
    verdicts = [pays(thinned, predictor._captured.symbols, [(rows, 8)], (0.5, 0.5), rates) for rows in (1, 1024)]
    assert verdicts == [False, True]
    assert not pays(thinned, predictor._captured.symbols, [(1024, 8)], (0.99, 0.99), rates), (
        "next to nothing is dropped"
    )


def broad() -> tuple[Predictor, Compiled]:
    """Return a convolution of many positions, which is worth thinning, and a wide layer of one row, which is not."""
    body = (nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    head = (nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(32 * 256, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))
    predictor = Predictor.capture(nn.Sequential(*body, *head), torch.randn(2, 1, 16, 16))
    return predictor, compiled_with(predictor)


def test_each_product_is_thinned_or_left_whole_by_its_own_cost() -> None:
    (predictor, plan), rates = broad(), Rates(4e10, 5e9, 1e10, 1.5e-6, 1 << 24)
    assert plan.thinned is not None
    convolution, wide, last = (each.name for each in plan.thinned.products)

    def whole(rows: int) -> frozenset[str]:
        assert plan.thinned is not None
        kept = (0.8, 0.8, 0.8)
        return better_whole(plan.thinned, predictor._captured.symbols, [(rows, 1, 16, 16)], kept, rates)

    assert convolution not in whole(1)
    assert wide in whole(1)
    assert not {convolution, wide} & whole(256)
    assert last not in {convolution, wide}


def test_a_small_layer_is_thinned_where_its_rows_would_take_longer_to_spread() -> None:
    """By the rates of a fast machine: 200 G operations, 2.8 G gathered and 15 G written elements each second."""
    body = (nn.Linear(8, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5))
    predictor = Predictor.capture(nn.Sequential(*body, nn.Linear(512, 10)), torch.randn(2, 8))
    thinned, rates = compiled_with(predictor).thinned, Rates(2e11, 2.8e9, 1.5e10, 1.5e-6, 1 << 24)
    assert thinned is not None
    assert not better_whole(thinned, predictor._captured.symbols, [(64, 8)], (0.5, 0.5), rates)


def test_passes_with_some_products_left_whole_are_the_whole_graphs() -> None:
    predictor, plan = broad()
    assert plan.thinned is not None
    names = [each.name for each in plan.thinned.products]
    for left in ([names[0]], [names[1]], names[1:], [names[0], names[2]]):
        plan.thinned = plan._thin(frozenset(left))
        assert plan.thinned is not None
        assert [each.name for each in plan.thinned.products if each.is_whole] == left
        thinned_against_whole(predictor, plan, (torch.randn(4, 1, 16, 16),), PASSES)
    assert plan._thin(frozenset(names)) is None


def test_the_machines_rates_are_measured_at_once_and_plausible() -> None:
    began = time.perf_counter()
    rates = measure()
    assert time.perf_counter() - began < 1
    assert 1e8 < rates.gathers < 1e12
    assert 1e8 < rates.products < 1e14
    assert 1e-8 < rates.call_s < 1e-3
    assert 1 << 20 <= rates.cache_bytes <= 1 << 28


def test_what_nothing_drops_from_is_not_thinned() -> None:
    predictor = Predictor.capture(wide(), torch.randn(2, 8))
    assert compiled_with(predictor, "gaussian").thinned is None
    assert compiled_with(predictor, "dropconnect").thinned is None
