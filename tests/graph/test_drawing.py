"""Noise that is kept for the next request: the same as drawn anew, for the same question alone, within its bytes."""

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.dropout.noise import Stream
from service.graph import drawing
from service.graph.drawing import Store


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    empty = Store(1 << 20)
    monkeypatch.setattr(drawing, "_store", empty)
    return empty


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """Note each draw of truth values."""
    streams, keep = [], Stream.keep

    def noted(self: Stream, *arguments: object) -> Tensor:
        streams.append(self)
        return keep(self, *arguments)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(Stream, "keep", noted)
    return streams


def mlp() -> Predictor:
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2))
    return Predictor.capture(nn.Sequential(network, nn.Linear(8, 2)), torch.randn(2, 3))


def test_the_same_question_draws_once_and_has_the_same_answer(store: Store, drawn: list[Stream]) -> None:
    predictor, x = mlp(), torch.randn(5, 3)
    first = predictor.predict(x, passes=20)
    count = len(drawn)
    again = predictor.predict(x, passes=20)

    assert len(drawn) == count
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.variance, again.variance)


@pytest.mark.parametrize("asked", [{"seed": 1}, {"passes": 21}, {"p": 0.3}, {"variant": "gaussian"}, {"scope": "row"}])
def test_another_question_has_the_answer_of_noise_drawn_for_it(asked: dict[str, object], store: Store) -> None:
    predictor, x, asked = mlp(), torch.randn(5, 3), {"passes": 20, **asked}
    first, kept = predictor.predict(x, passes=20), predictor.predict(x, **asked)  # type: ignore[arg-type] # of several types
    store._held.clear()
    fresh = predictor.predict(x, **asked)  # type: ignore[arg-type] # of several types

    assert not torch.equal(kept.variance, first.variance)
    assert torch.equal(kept.variance, fresh.variance)


def test_row_scope_keeps_nothing(store: Store) -> None:
    predictor, x = mlp(), torch.randn(5, 3)
    predictor.predict(x[:1], passes=20)
    held = len(store._held)
    predictor.predict(x, passes=20, scope="row", seed=5)

    assert len(store._held) == held


def test_no_run_writes_to_what_is_kept(store: Store) -> None:
    predictor, x = mlp(), torch.randn(300, 3)
    predictor.predict(x, passes=20)
    before = {key: held.clone() for key, held in store._held.items()}
    for asked in ({}, {"precision": "bfloat16"}, {"quantities": ["samples"]}):
        predictor.predict(x, passes=20, **asked)  # type: ignore[arg-type] # of several types

    assert before
    assert all(torch.equal(store._held[key], held) for key, held in before.items())


def test_it_holds_what_was_used_last_within_its_bytes() -> None:
    store = Store(5 * 2024)
    for key in range(5):
        store.put(key, torch.zeros(1000, dtype=torch.uint8))
    store.find(0)
    store.put(5, torch.zeros(1000, dtype=torch.uint8))
    store.put(5, torch.zeros(1000, dtype=torch.uint8))

    assert [key for key in range(6) if store.find(key) is not None] == [0, 2, 3, 4, 5]
    assert store._bytes == sum(held.nbytes + 1024 for held in store._held.values())


def test_what_would_take_most_of_the_room_is_not_held() -> None:
    store = Store(10_000)
    store.put("large", torch.zeros(2501, dtype=torch.uint8))

    assert store.find("large") is None
