"""Linear layers that take in the site before them: one product for all passes, the same as the whole graph."""

import pytest
import torch
from modes import compare_modes
from specimen import WIDTH
from torch import Tensor, nn

from service import Predictor
from service.dropout import BY_NAME, VARIANTS, Bernoulli, Kind
from service.dropout.variant import ActivationVariant
from service.graph import products
from service.graph.acting import Apply
from service.graph.compiled import Compiled
from service.graph.drawing import Draw, draw_noises
from service.graph.products import ScaledLinear, one_product
from service.graph.shapes import BatchAxis
from service.plan import make_plan

SCALING = [variant.name for variant in VARIANTS if issubclass(variant, ActivationVariant) and variant.scales]
UNITWISE = [name for name in SCALING if BY_NAME[name]().fits(Kind.HIDDEN, (12,))]
PASSES = 8


class TwoHeads(nn.Module):
    """One site before two linear layers, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(WIDTH, 8), nn.Dropout(0.4)
        self.first, self.second = nn.Linear(8, 3), nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.drop(torch.relu(self.body(x)))
        return self.first(h), self.second(h)


class Shortcut(TwoHeads):
    """One site before a linear layer and an addition: its value is needed as it is."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.drop(torch.relu(self.body(x)))
        return self.first(h), h + 1


def captured(network: nn.Module) -> Predictor:
    return Predictor.capture(network, torch.randn(2, WIDTH))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3))


def fused(compiled: Compiled) -> list[ScaledLinear]:
    return [node.target for node in compiled._split.suffix.graph.nodes if isinstance(node.target, ScaledLinear)]


@pytest.mark.parametrize("behind", [(), (nn.ReLU(),)])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("variant", UNITWISE)
def test_each_pass_is_the_whole_graphs(
    variant: str, rows: int, behind: tuple[nn.Module, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of two rows, too."""
    monkeypatch.setattr(products, "_PART_BYTES", 2 * 3 * 12 * 4)
    predictor, x = captured(nn.Sequential(mlp(), *behind)), torch.randn(rows, WIDTH)
    compiled = Compiled(predictor._captured, make_plan(predictor.sites, variant))
    draw = Draw(4, 0, PASSES, None)
    noises = draw_noises(compiled._rewritten.noises, predictor._captured.symbols, [(rows, WIDTH)], draw, x.device)
    taken = []
    monkeypatch.setattr(products, "one_product", lambda *given: taken.append(given) or one_product(*given))

    found = compiled.run(compiled.trunk((x,)), [(rows, WIDTH)], draw)[0]

    with torch.inference_mode():
        expected = torch.stack([compiled._rewritten.module(x, rows, noises[0][t])[0] for t in range(PASSES)])
    assert len(taken) == 1
    assert [each.rectifies for each in fused(compiled)] == [bool(behind)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("variant", SCALING)
def test_a_variant_that_says_it_scales_does(variant: str) -> None:
    acting = BY_NAME[variant]()
    assert isinstance(acting, ActivationVariant)
    x, noise = torch.randn(3, 4, 5), torch.randn(2, 1, 4, 5)
    torch.testing.assert_close(acting.apply(x, noise), x * noise)


@pytest.mark.parametrize("part_rows", [1, 2, 3, 8, 100])
@pytest.mark.parametrize(("noise_rows", "shared"), [(1, True), (1, False), (3, True), (3, False)])
def test_what_is_masked_part_by_part_is_masked_as_a_whole(
    part_rows: int, noise_rows: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_PART_BYTES", part_rows * 5 * 4)
    noise, x = torch.rand(4, noise_rows, 5), torch.randn(3 if shared else 12, 5)
    weight, bias = torch.randn(7, 5), torch.randn(7)
    acting = Apply(Bernoulli(), BatchAxis(0))

    found = ScaledLinear(acting)(12, noise, x, weight, bias)

    expected = torch.nn.functional.linear(acting(12, noise, x), weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_site_before_two_heads_goes_into_both() -> None:
    predictor = captured(TwoHeads())
    compiled = Compiled(predictor._captured, make_plan(predictor.sites))
    assert len(fused(compiled)) == 2
    for rows in (1, 4):
        compare_modes(compiled, predictor._captured, (torch.randn(rows, WIDTH),))


def test_a_site_whose_value_is_needed_elsewhere_stays() -> None:
    predictor = captured(Shortcut())
    compiled = Compiled(predictor._captured, make_plan(predictor.sites))
    assert not fused(compiled)
    compare_modes(compiled, predictor._captured, (torch.randn(3, WIDTH),))


def test_rows_with_networks_of_their_own_take_the_plain_path() -> None:
    predictor, x = captured(mlp()), torch.randn(3, WIDTH)
    together = predictor.predict(x, passes=PASSES, scope="row", quantities=["samples"])["samples"]
    for row in range(3):
        alone = predictor.predict(x[row : row + 1], passes=PASSES, scope="row", row_offset=row, quantities=["samples"])
        assert isinstance(together, Tensor)
        assert isinstance(alone["samples"], Tensor)
        torch.testing.assert_close(alone["samples"], together[row : row + 1], rtol=1e-5, atol=1e-6)
