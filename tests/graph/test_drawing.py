"""Noise that is kept for the next request: the same as drawn anew, for the same question alone, within its bytes."""

import mmap

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.dropout.noise import Stream
from service.dropout.variant import scaled_keep
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


def test_the_same_question_draws_twice_at_most_and_has_the_same_answer(store: Store, drawn: list[Stream]) -> None:
    predictor, x = mlp(), torch.randn(5, 3)
    first = predictor.predict(x, passes=20)
    before = len(drawn)
    second = predictor.predict(x, passes=20)
    count = len(drawn)
    third = predictor.predict(x, passes=20)

    assert before < count == len(drawn)
    for again in (second, third):
        assert torch.equal(first.mean, again.mean)
        assert torch.equal(first.variance, again.variance)


def test_what_is_asked_for_once_takes_no_room(store: Store) -> None:
    predictor, x = mlp(), torch.randn(5, 3)
    predictor.predict(x, passes=20)  # plans are tried with a seed of their own, again and again
    held = store._bytes
    for seed in (*range(100, 110), None, None):
        predictor.predict(x, passes=20, seed=seed)
    assert store._bytes == held

    predictor.predict(x, passes=20, seed=100)
    assert store._bytes > held


def test_no_more_draws_are_remembered_than_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_LATELY", 3)
    store = Store(1 << 20)

    assert [store.is_asked_again("a", first, 2) for first in (0, 1, 2, 0, 3, 0, 1)] == [
        *(False, False, False, True),
        *(False, True, False),
    ]
    assert not store.is_asked_again("a", 0, 3)
    assert len(store._asked) == 3


@pytest.mark.parametrize("asked", [{"seed": 1}, {"passes": 21}, {"p": 0.3}, {"variant": "gaussian"}, {"scope": "row"}])
def test_another_question_has_the_answer_of_noise_drawn_for_it(asked: dict[str, object], store: Store) -> None:
    predictor, x, asked = mlp(), torch.randn(5, 3), {"passes": 20, **asked}
    first = [predictor.predict(x, passes=20) for _ in range(2)][1]
    kept = [predictor.predict(x, **asked) for _ in range(3)][2]  # type: ignore[arg-type] # of several types
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
    for _ in range(2):
        predictor.predict(x, passes=20)
    before = {key: held.values.clone() for key, [held] in store._held.items()}
    for asked in ({}, {"precision": "bfloat16"}, {"quantities": ["samples"]}):
        predictor.predict(x, passes=20, **asked)  # type: ignore[arg-type] # of several types

    assert before
    assert all(torch.equal(store._held[key][0].values, held) for key, held in before.items())


def passes_of(*indices: int) -> Tensor:
    """Return noise of some passes, 1000 bytes each, that tells which they are."""
    return torch.tensor(indices, dtype=torch.uint8)[:, None].expand(-1, 1000).clone()


def held_bytes(store: Store) -> int:
    return sum(each.values.nbytes + 1024 for held in store._held.values() for each in held)


def test_fewer_passes_are_found_among_more_and_more_take_their_place(store: Store, drawn: list[Stream]) -> None:
    predictor, x = mlp(), torch.randn(5, 3)
    for passes in (20, 20, 30, 30):
        predictor.predict(x, passes=passes)
    count = len(drawn)
    found = predictor.predict(x, passes=12)
    assert len(drawn) == count
    assert all(len(held) == 1 for held in store._held.values())

    store._held.clear()
    fresh = predictor.predict(x, passes=12)
    assert torch.equal(found.mean, fresh.mean)
    assert torch.equal(found.variance, fresh.variance)


def test_passes_are_found_by_their_indices() -> None:
    store = Store(1 << 20)
    store.put("a", 4, passes_of(4, 5, 6))
    store.put("a", 7, passes_of(7, 8))
    store.put("b", 0, passes_of(9))

    assert [store.find("a", first, 2) is not None for first in range(3, 9)] == [False, True, True, False, True, False]
    found = store.find("a", 5, 2)
    assert found is not None
    assert found[:, 0].tolist() == [5, 6]

    store.put("a", 3, passes_of(3, 4, 5, 6))
    assert [each.first for each in store._held["a"]] == [7, 3]
    assert store._bytes == held_bytes(store)


def test_it_holds_what_was_used_lately_within_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_LATELY", 3)
    store = Store(5 * 2024)
    for key in range(5):
        store.put(key, 0, passes_of(key))
    store.find(0, 0, 1)
    store.find(2, 0, 1)
    store.put(5, 0, passes_of(5))
    assert store.find(5, 0, 1) is None  # 1 was not used, but just two draws ago it might have been put
    store.put(5, 0, passes_of(5))
    store.put(5, 0, passes_of(5))

    assert [key for key in range(6) if key in store._held] == [0, 2, 3, 4, 5]
    assert store._bytes == held_bytes(store)


def test_of_what_has_no_room_the_part_that_has_is_found_each_time() -> None:
    """The last used of a cycle that is larger than the store would be gone each time that it comes again."""
    store, passes = Store(10 * 2024), [passes_of(index) for index in range(25)]
    for _ in range(3):
        found = [store.find("a", index, 1) for index in range(20)] + [store.find("b", 0, 1)]
        for index in range(20):
            if found[index] is None:
                store.put("a", index, passes[index])

    assert [each is not None for each in found] == [True] * 10 + [False] * 11
    assert store._bytes == held_bytes(store)


def test_what_would_take_most_of_the_room_is_not_held() -> None:
    store = Store(10_000)
    store.put("large", 0, passes_of(1, 2, 3))

    assert store.find("large", 0, 1) is None


def test_large_noise_is_held_in_pages_of_its_own(store: Store) -> None:
    large, small = torch.rand(50, 1, 1000), torch.rand(2, 1, 3)
    store.put("large", 0, large)
    store.put("small", 0, small)
    held = store.find("large", 0, 50)
    assert held is not None
    assert torch.equal(held, large)
    assert held.data_ptr() % mmap.PAGESIZE == 0
    found = store.find("small", 0, 2)
    assert found is not None
    assert found.data_ptr() == small.data_ptr()


@pytest.mark.parametrize("q", [0.9, 0.5])
def test_much_of_two_values_is_held_as_truth_values_and_told_as_it_was(q: float) -> None:
    store, drawn = Store(1 << 22), scaled_keep(Stream(1, "site", 4, 8), q, (50, 1000))
    store.put("much", 4, drawn)
    found = store.find("much", 5, 3)

    assert found is not None
    assert torch.equal(found, drawn[1:4])
    assert found.dtype == drawn.dtype
    assert store._bytes == drawn.numel() + 1024
    assert store._held["much"][0].values.data_ptr() % mmap.PAGESIZE == 0


@pytest.mark.parametrize(
    "drawn",
    [
        torch.randn(4, 1, 100_000),
        torch.randint(0, 3, (4, 1, 100_000)).float(),
        torch.randint(-1, 1, (4, 1, 100_000)).float(),
        torch.full((4, 1, 100_000), torch.nan),
        torch.randint(0, 2, (4, 1, 100_000)).double(),
    ],
    ids=["normal", "three values", "0 and less", "no numbers", "of another type"],
)
def test_what_is_of_other_values_is_held_as_it_is(drawn: Tensor) -> None:
    store = Store(1 << 25)
    store.put("a", 0, drawn)
    found = store.find("a", 0, 4)

    assert found is not None
    torch.testing.assert_close(found, drawn, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scope", ["pass", "row"])
def test_several_threads_draw_what_one_draws(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, x = mlp(), torch.randn(5, 3)
    threads, pools = torch.get_num_threads(), []
    pool = drawing.ThreadPoolExecutor
    monkeypatch.setattr(drawing, "ThreadPoolExecutor", lambda count: pools.append(count) or pool(count))
    monkeypatch.setattr(drawing, "_MANY", 2)
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(predictor.predict(x, passes=20, scope=scope, seed=77))
            monkeypatch.setattr(drawing, "_store", Store(1 << 20))
    finally:
        torch.set_num_threads(threads)

    assert pools
    assert set(pools) == {2}
    assert torch.equal(found[0].mean, found[1].mean)
    assert torch.equal(found[0].variance, found[1].variance)


def test_what_is_shared_is_not_counted_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel's noise is one number, whatever its positions: threads would take longer to start than it to draw."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.2), nn.Conv2d(4, 4, 3), nn.Dropout2d(0.2), nn.Flatten())
    predictor, pools = Predictor.capture(network.eval(), torch.randn(2, 1, 20, 20)), []
    pool = drawing.ThreadPoolExecutor
    monkeypatch.setattr(drawing, "ThreadPoolExecutor", lambda count: pools.append(count) or pool(count))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(drawing, "_MANY", 20 * 8 + 1)
    for seed in (5, 6):
        predictor.predict(torch.randn(1, 1, 20, 20), passes=20, seed=seed)
    assert not pools

    monkeypatch.setattr(drawing, "_MANY", 20 * 8)
    predictor.predict(torch.randn(1, 1, 20, 20), passes=20, seed=7)
    assert pools == [2]
