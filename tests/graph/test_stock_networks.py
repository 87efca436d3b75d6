"""What a request alone can activate on stock torch networks, each against its paper's transcription put in by hand."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transcriptions as papers
from moments import assert_same_moments
from stock import FAMILIES, by_request, stock
from torch import Tensor, nn

from service.dropout import BY_NAME, Kind

PASSES, P = 3000, 0.3
AS_TRANSCRIBED = {
    "targeted-units": {"gamma": 1.0},
    "dropblock": {"block_size": 2.0},
    "cutout": {"size": 2.0},
}
"""Parameters by variant, where the transcription has other ones than the variant's defaults."""
ELSEWHERE = {
    "tests/dropout/test_masksembles.py": {"masksembles"},
    "tests/graph/test_pool_sites.py": {
        *("max-pooling-dropout", "stochastic-pooling", "masked-max-pooling", "max-drop", "max-drop-channel")
    },
    "tests/graph/test_cells.py": {"variational-rnn", "rnn-drop", "recurrent-dropout", "zoneout"},
    "tests/graph/test_sequences.py": {"locked", "weight-dropped"},
}
"""What other files hold against modules written by hand, on layers like those of these networks."""


def cases() -> list[tuple[str, str, str]]:
    """Return family, site and variant, wherever a transcription can be put in by hand."""
    found = []
    for name, family in FAMILIES.items():
        fitting = by_request(name)
        sites = (*family.hooks, "input")
        found += [(name, site, v) for site in sites for v in fitting[site] if v in papers.ACTIVATIONS | papers.MAPS]
        found += [(name, site, v) for site, fits in fitting.items() for v in fits if is_head(name, site, v)]
    return found


def is_head(family: str, site: str, variant: str) -> bool:
    """Tell whether a variant acts on the weight of the last linear layer."""
    *_, last = [each for each, module in stock(family)[0].named_modules() if isinstance(module, nn.Linear)]
    return site == f"{last}.weight" and variant in papers.WEIGHTS


@pytest.mark.parametrize(("family", "site", "variant"), cases())
def test_a_variant_by_request_is_its_paper(family: str, site: str, variant: str) -> None:
    network, x, predictor = stock(family)
    rate = {"p": P} if BY_NAME[variant].rated else {}
    options = {"variant": variant, **rate, **AS_TRANSCRIBED.get(variant, {})}
    mine = predictor.predict(x, passes=PASSES, variant="off", sites={site: options})

    if site == "input":
        theirs = network(noisy(variant, x))
    elif site.endswith(".weight"):
        theirs = with_weights(network, x, site.removesuffix(".weight"), variant)
    else:
        theirs = with_activations(FAMILIES[family].by_hand(network), x, FAMILIES[family].hooks[site], variant)

    assert_same_moments(mine.mean[0], mine.variance[0], theirs.detach())


def with_activations(network: nn.Module, x: Tensor, at: str, variant: str) -> Tensor:
    """Run the network with its paper's noise on the output of a submodule."""
    hooked = copy.deepcopy(network).eval()
    hooked.get_submodule(at).register_forward_hook(lambda module, given, output: noisy(variant, output[:1]))
    with torch.no_grad():
        result: Tensor = hooked(x.expand(PASSES, *x.shape[1:]))
    return result


def with_weights(network: nn.Module, x: Tensor, at: str, variant: str) -> Tensor:
    """Run the network with its paper's noise in the weights of a linear layer."""
    hooked = copy.deepcopy(network)
    layer = hooked.get_submodule(at)
    assert isinstance(layer, nn.Linear)
    weight, bias = (each.detach().double().numpy() for each in (layer.weight, layer.bias))

    def product(module: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        features = given[0][0].double().numpy()
        return torch.from_numpy(papers.WEIGHTS[variant](np.random.default_rng(7), PASSES, P, features, weight, bias))

    layer.register_forward_hook(product)
    with torch.no_grad():
        result: Tensor = hooked(x.expand(PASSES, *x.shape[1:]))
    return result


def noisy(variant: str, x: Tensor) -> Tensor:
    """Return the paper's passes [S, …] for one row x [1, …], its channels in front of one axis of positions."""
    row = x[0].detach().double().numpy()
    if variant in papers.MAPS:
        return torch.from_numpy(papers.MAPS[variant](np.random.default_rng(7), PASSES, P, row)).float()
    flat = row.reshape(len(row), -1) if row.ndim > 1 else row
    passes = papers.ACTIVATIONS[variant](np.random.default_rng(7), PASSES, P, flat)
    return torch.from_numpy(passes).float().reshape(PASSES, *row.shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_alone_activates_enough_variants(family: str) -> None:
    found = sorted({variant for fits in by_request(family).values() for variant in fits})
    print(f"\n{family}: {len(found)} variants by request: {', '.join(found)}")

    assert len(found) >= FAMILIES[family].least


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_by_request_is_held_against_a_module_written_by_hand(family: str) -> None:
    asked = {variant for fits in by_request(family).values() for variant in fits}
    here = {variant for name, _, variant in cases() if name == family}

    assert asked - here <= set().union(*ELSEWHERE.values())


@pytest.mark.parametrize("path", ELSEWHERE)
def test_what_is_held_elsewhere_is_named_there(path: str) -> None:
    text = (Path(__file__).parents[2] / path).read_text()

    assert [name for name in ELSEWHERE[path] if not (name in text or BY_NAME[name].__name__ in text)] == []


def test_every_kind_of_untrained_site_stands_in_some_family() -> None:
    kinds = {site.kind for family in FAMILIES for site in stock(family)[2].sites}

    assert set(Kind) - kinds == {Kind.RESIDUAL, Kind.GATED, Kind.BRANCHES, Kind.EMBEDDING, Kind.SPARSE_WEIGHT}
