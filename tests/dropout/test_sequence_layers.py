"""Layers over sequences do in training what their papers say, and nothing in eval mode."""

import copy
import warnings
from typing import Any

import pytest
import torch
from laws import SIGMAS
from test_layers import assert_moments
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout import LockedDropout, WeightDropGRU, WeightDropLSTM
from service.errors import InvalidPlan

RATES = (0.1, 0.5)
ROWS = 40_000
RECURRENT: dict[type[nn.RNNBase], type[nn.RNNBase]] = {WeightDropLSTM: nn.LSTM, WeightDropGRU: nn.GRU}
OPTIONS = [
    {"batch_first": True},
    {"num_layers": 2, "dropout": 0.4, "bidirectional": True},
    {"num_layers": 2, "bias": False, "batch_first": True},
]


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_locked_mask_is_one_for_all_steps_and_another_for_each_row(batch_first: bool, p: float) -> None:
    x = torch.ones(ROWS, 3, 2)
    layer = LockedDropout(p, batch_first).train()
    y = layer(x) if batch_first else layer(x.transpose(0, 1)).transpose(0, 1)

    assert torch.equal(y, y[:, :1].expand_as(y))
    assert_moments(y[:, 0].double(), torch.ones(2), torch.full((2,), p / (1 - p)))
    assert torch.corrcoef(y[:, 0].T)[0, 1].abs() < SIGMAS / ROWS**0.5
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layer", RECURRENT)
def test_in_eval_mode_a_weight_dropped_layer_is_torchs_own(layer: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    plain = RECURRENT[layer](4, 5, **options).eval()
    mine = layer(4, 5, **options, p=0.4).eval()
    mine.load_state_dict(plain.state_dict())
    x = torch.randn(3, 6, 4)

    for found, expected in zip(flat(mine(x)), flat(plain(x)), strict=True):
        torch.testing.assert_close(found, expected)
    state = plain(x)[1]
    torch.testing.assert_close(mine(x, state)[0], plain(x, state)[0])


@pytest.mark.parametrize("options", OPTIONS[::2])
@pytest.mark.parametrize("layer", RECURRENT)
def test_in_training_the_recurrent_weights_alone_are_masked_and_scaled(layer: Any, options: dict[str, Any]) -> None:
    """The plain layer with weights masked by the same numbers gives the same outputs."""
    mine, plain = layer(4, 5, **options, p=0.4).train(), RECURRENT[layer](4, 5, **options)
    x = torch.randn(3, 6, 4)
    torch.manual_seed(7)
    found = mine(x)[0]
    torch.manual_seed(7)
    masked = {
        name: F.dropout(value, 0.4) if name.startswith("weight_hh") else value
        for name, value in mine.state_dict().items()
    }
    plain.load_state_dict(masked)

    torch.testing.assert_close(found, plain(x)[0])
    assert any(set((masked[name] == 0).unique().tolist()) == {False, True} for name in masked)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("layer", RECURRENT)
def test_gradients_reach_the_recurrent_weights_that_were_kept_at_its_rate(layer: Any, p: float) -> None:
    module = layer(2, 60, batch_first=True, p=p).train()
    module(torch.randn(3, 4, 2))[0].sum().backward()
    assert module.weight_hh_l0.grad is not None
    dropped = (module.weight_hh_l0.grad == 0).double()

    assert abs(dropped.mean().item() - p) <= SIGMAS * (p * (1 - p) / dropped.numel()) ** 0.5
    assert (module.weight_ih_l0.grad != 0).all()


@pytest.mark.parametrize("layer", RECURRENT)
def test_one_mask_serves_the_whole_batch_and_the_next_batch_has_another(layer: Any) -> None:
    module = layer(2, 5, batch_first=True, p=0.5).train()
    x = torch.randn(1, 4, 2).expand(3, -1, -1)
    once, again = module(x)[0], module(x)[0]

    torch.testing.assert_close(once, once[:1].expand_as(once))
    assert not torch.allclose(once, again)


@pytest.mark.parametrize("layer", RECURRENT)
def test_training_never_writes_to_the_weights(layer: Any) -> None:
    module = layer(4, 5, 2, batch_first=True, p=0.5).train()
    before = copy.deepcopy(module.state_dict())
    module(torch.randn(3, 6, 4))
    module.eval()(torch.randn(3, 6, 4))

    assert list(before) == list(RECURRENT[layer](4, 5, 2).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [LockedDropout, *RECURRENT])
def test_an_exported_layer_is_one_random_node_that_holds_its_rate(layer: Any, training: bool) -> None:
    module = (layer(0.3) if layer is LockedDropout else layer(4, 5, batch_first=True, p=0.3)).train(training)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        program = torch.export.export(nn.Sequential(module), (torch.randn(2, 3, 4),))
    (node,) = (
        node for node in program.graph.nodes if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    )
    values = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))

    assert (values["p"], values["train"]) == (0.3, training)
    assert all("dropout" not in str(each.target) for each in program.graph.nodes if each is not node)


def test_what_is_no_batch_of_sequences_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"LockedDropout takes sequences \[B, steps, units\]; it got the shape \(3, 4\)"
    ):
        LockedDropout()(torch.randn(3, 4))
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4)])
    for given in (torch.randn(3, 4), packed):
        with pytest.raises(ValueError, match="WeightDropLSTM takes padded sequences of three axes; it got"):
            WeightDropLSTM(4, 5)(given)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_zero_to_one_is_refused(p: float) -> None:
    for make in (lambda: LockedDropout(p), lambda: WeightDropLSTM(4, 5, p=p), lambda: WeightDropGRU(4, 5, p=p)):
        with pytest.raises(InvalidPlan, match="is not a drop probability; give 0 <= p < 1"):
            make()


def flat(result: tuple[Tensor, Any]) -> list[Tensor]:
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]
