"""64 callers at once, each with questions of their own: every answer is the one that the question gets alone."""

from collections import Counter

from asks import Ask, drawn, questions
from callers import Answer, run, together
from process import Served
from same import difference
from sizes import Sizes

CLIENTS = 64


def as_told(ask: Ask, answer: Answer) -> Ask:
    """Return the question that has this answer every time: a fresh seed is the one that was told."""
    if not ask.is_fresh or answer.status != 200:
        return ask
    told = ask.read(answer.body, answer.headers or {})
    return ask.with_seed(told["seed"] if "seed" in told else told["parameters"]["seed"])


def test_every_answer_is_the_one_that_the_question_gets_alone(served: Served, sizes: Sizes) -> None:
    pool = questions(sizes.pool)
    asks = list(drawn(pool, sizes.requests))
    among = run(together(served.address, asks, CLIENTS))
    replays = {}
    for ask, answer in zip(asks, among, strict=True):
        replays.setdefault((id(ask), answer.body if ask.is_fresh else b""), as_told(ask, answer))
    alone = dict(zip(replays, run(together(served.address, list(replays.values()), 1)), strict=True))

    statuses = Counter(answer.status for answer in among)
    assert set(statuses) <= {200, 400}, statuses
    assert statuses[200] > 0.8 * len(asks), statuses
    wrong = []
    for ask, answer in zip(asks, among, strict=True):
        other = alone[id(ask), answer.body if ask.is_fresh else b""]
        assert answer.status == other.status, (answer.body[:300], other.body[:300])
        told = difference(ask.read(answer.body, answer.headers or {}), ask.read(other.body, other.headers or {}))
        wrong += [f"{ask.question['model']}, {ask.route}: {told}"] if told else []
    print(f"\n{len(asks)} requests by {CLIENTS} clients, {len(replays)} alone: {len(wrong)} differ; {dict(statuses)}")
    assert not wrong, wrong[:5]


def test_a_neighbours_answer_would_not_pass_for_ones_own(served: Served) -> None:
    """The comparison tells seeds, plans and rows apart: else the test above could not fail."""
    own = [ask for ask in questions(80, seed=2) if ask.route == "predict" and not ask.is_fresh]
    asks = [ask for ask in own if "estimator" not in ask.question][:12]  # integrated, it may be exact for any seed
    answers = run(together(served.address, asks, 1))
    told = [ask.read(answer.body, {}) for ask, answer in zip(asks, answers, strict=True)]
    for first, mine in enumerate(told):
        for second, other in enumerate(told):
            assert (difference(mine, other) is None) == (first == second or mine == other)
    seeded = [ask.with_seed(99) for ask in asks]
    for ask, mine, again in zip(asks, told, run(together(served.address, seeded, 1)), strict=True):
        if "mean" in mine:
            assert difference(mine["mean"], ask.read(again.body, {})["mean"]) is not None
