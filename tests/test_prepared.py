"""What is made once for each kind of question: equal kinds share it, others never do."""

import linecache

import pytest
import torch
from torch import nn
from torch.fx import graph_module

from service import Predictor
from service.ask import Asked
from service.errors import BadRequest


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.25), nn.Linear(5, 2)).eval()
    return Predictor.capture(network, torch.randn(2, 3))


def test_a_kind_is_prepared_once_whatever_the_seed_and_the_rows_offset(predictor: Predictor) -> None:
    asked = Asked(passes=20, seed=1)
    assert predictor.found(asked) is None
    first = predictor.prepared(asked)
    assert predictor.found(asked) is predictor.prepared(asked)
    assert predictor.prepared(asked._replace(seed=2, row_offset=7)) is first


@pytest.mark.parametrize(
    "other",
    [
        {"passes": 21},
        {"variant": "gaussian"},
        {"p": 0.5},
        {"sites": {"1": 0.5}},
        {"scope": "row"},
        {"tolerance": 0.1},
        {"estimator": "integrated"},
        {"precision": "bfloat16"},
        {"quantities": ["standard_error"]},
        {"memory_bytes": 1 << 20},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_kinds_share_nothing(predictor: Predictor, other: dict[str, object]) -> None:
    asked = Asked(passes=20)
    assert predictor.prepared(asked._replace(**other)) is not predictor.prepared(asked)


def test_a_prepared_kind_lets_no_equal_value_of_another_type_through(predictor: Predictor) -> None:
    predictor.prepared(Asked(passes=20, p=0.5))
    with pytest.raises(BadRequest, match=r"passes = 20\.0 is not a whole number"):
        predictor.prepared(Asked(passes=20.0, p=0.5))  # type: ignore[arg-type] # on purpose


def test_a_new_default_is_asked_for_anew(predictor: Predictor) -> None:
    before = predictor.prepared(Asked()).passes
    predictor.passes = before + 1
    assert predictor.prepared(Asked()).passes == before + 1
    predictor.passes = before


def test_a_plan_that_had_to_go_is_held_by_no_kind(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor._preparation._plans, "_most", 2)
    asked = [Asked(p=rate) for rate in (0.1, 0.2, 0.3)]
    for each in asked:
        predictor.prepared(each)
    assert [predictor.found(each) is not None for each in asked] == [False, True, True]


def test_plans_that_are_let_go_of_leave_none_of_their_source(predictor: Predictor) -> None:
    """torch.fx keeps the source of every graph, and what it names, for the life of the process."""

    def kept() -> int:
        return sum(str(place).startswith("<eval_with_key>") for place in linecache.cache)

    for p in range(1, 41):
        predictor.predict(torch.zeros(1, 3), passes=2, p=p / 100)

    assert kept() < 40
    assert len(graph_module._loader.eval_cache) < 40
