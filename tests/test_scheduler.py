"""Who runs with whom and when: by steps that tests let go one by one, no network and no web."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from threading import Event, Timer, current_thread
from typing import Any

import pytest

from service.errors import DeadlineExceeded, Draining, Overloaded
from service.job import Job, Pending, Steps
from service.pace import Pace
from service.scheduler import Scheduler

SOON_S = 10.0


@dataclass(eq=False)
class Task:
    """Work of some steps; `fault` is raised at one of them.

    Its results are on their way until `there` is set; `lost` is raised by whoever waits for them.
    """

    name: str
    key: str | None = "same"
    steps: int = 1
    fault: Exception | None = None
    fault_at: int = 0
    room: int = 100
    there: Event | None = None
    lost: Exception | None = None

    def fits(self, others: Sequence["Task"]) -> bool:
        return len(others) < self.room


@dataclass
class Bench:
    """A scheduler whose first run is held until `go`, and what happened in it."""

    told: list[str] = field(default_factory=list)
    go: Event = field(default_factory=Event)
    threads: list[str] = field(default_factory=list)
    step_s: float = 0.0
    jobs: list[Job[str]] = field(default_factory=list)

    def start(self, jobs: Sequence[Job[str]]) -> Steps[str]:
        tasks: list[Task] = [job.work for job in jobs]
        names = "+".join(task.name for task in tasks)
        for step in range(max(task.steps for task in tasks)):
            assert self.go.wait(SOON_S)
            for task in tasks:
                if task.fault is not None and task.fault_at == step:
                    self.told.append(f"{names} fails")
                    raise task.fault
            self.told.append(f"{names} {step}")
            self.threads.append(current_thread().name)
            time.sleep(self.step_s)
            done = [place for place, task in enumerate(tasks) if task.steps == step + 1]
            yield from self.arriving(names, [tasks[place] for place in done])
            yield {place: tasks[place].name for place in done if jobs[place].is_wanted()}

    def arriving(self, names: str, tasks: Sequence[Task]) -> Iterator[Pending]:
        """Tell that results are on their way, and wait for them."""
        expected = [task.there for task in tasks if task.there is not None]
        if not expected:
            return
        yield Pending(lambda: all(each.is_set() for each in expected))
        self.told.append(f"{names} awaited")
        assert all(each.wait(SOON_S) for each in expected)
        for task in tasks:
            if task.lost is not None:
                raise task.lost


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make(bench: Bench) -> Iterator[Callable[..., Scheduler[str]]]:
    made: list[Scheduler[str]] = []

    def one(**limits: Any) -> Scheduler[str]:
        made.append(Scheduler(bench.start, **limits))
        return made[-1]

    yield one
    bench.go.set()
    for scheduler in made:
        scheduler.give_up(Draining("the test is over"))
        scheduler.close()


def held(scheduler: Scheduler[str], *tasks: Task, cost_s: float = 1.0) -> list[Job[str]]:
    """Submit a job that holds the thread, then the others."""
    first = scheduler.submit(Task("first", None), 0.0)
    until(lambda: first.queue_s > 0 or not scheduler._accepted.waiting)
    return [first, *(scheduler.submit(task, cost_s) for task in tasks)]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_queued_while_the_last_run_worked_runs_together(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    jobs = held(make(), Task("a"), Task("b"), Task("c", "other"), Task("d"), cost_s=0.01)
    bench.go.set()

    assert [job.future.result(SOON_S) for job in jobs] == ["first", "a", "b", "c", "d"]
    assert sorted(bench.told) == ["a+b+d 0", "c 0", "first 0"]
    assert [job.together for job in jobs] == [1, 3, 3, 1, 3]
    assert all(job.queue_s > 0 for job in jobs[1:])


def test_what_is_sooner_done_than_a_thread_woken_is_done_at_once(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    bench.go.set()
    scheduler = make()
    jobs = [scheduler.submit(Task(*task), 1e-4, wake=False) for task in (("a",), ("b",), ("c", "other"))]
    assert not bench.told, "several are attended to together"
    scheduler.attend()

    assert [job.future.result(0) for job in jobs] == ["a", "b", "c"]
    assert bench.told == ["a+b 0", "c 0"]
    assert set(bench.threads) == {current_thread().name}


@pytest.mark.parametrize("costs", [(0.1,), (0.1, 9e-4)])
def test_what_takes_longer_is_left_to_the_thread(
    bench: Bench, make: Callable[..., Scheduler[str]], costs: tuple[float, ...]
) -> None:
    scheduler = make()
    jobs = [scheduler.submit(Task("a", None), cost_s, wake=False) for cost_s in costs]
    assert not scheduler.attend()
    assert not any(job.future.done() for job in jobs), "who attends does not wait"
    bench.go.set()

    assert [job.future.result(SOON_S) for job in jobs] == ["a"] * len(costs)
    assert set(bench.threads) == {"compute"}


def test_much_that_is_little_is_done_a_while_at_a_time_so_that_others_have_their_turn(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    bench.go.set()
    scheduler, bench.step_s = make(), 2e-3
    jobs, done = [scheduler.submit(Task(str(place), None), 2e-3, wake=False) for place in range(20)], [0]
    while scheduler.attend():
        done.append(sum(job.future.done() for job in jobs))

    assert len(done) > 3
    assert 0 < done[1] <= 5, "ten milliseconds of work"
    assert all(job.future.done() for job in jobs)
    assert set(bench.threads) == {current_thread().name}
    assert bench.told == [f"{place} 0" for place in range(20)], "whoever came first is first"


def test_little_ones_run_together_as_far_as_that_takes_no_longer_than_a_while(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    bench.go.set()
    scheduler = make()
    jobs = [scheduler.submit(Task("a"), 2e-3, wake=False) for _ in range(20)]
    while scheduler.attend():
        pass

    assert [job.future.result(0) for job in jobs] == ["a"] * 20
    assert 1 < max(job.together for job in jobs) <= 5


def test_of_what_costs_about_as_much_the_first_is_first_whatever_was_expected_of_it(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    scheduler = make()
    first = scheduler.submit(Task("first", None), 0.0)
    until(lambda: first.queue_s > 0 or not scheduler._accepted.waiting)
    costs = [0.0121, 0.0119] * 4  # on both sides of four times what is little
    jobs = [scheduler.submit(Task(str(place), None), cost_s) for place, cost_s in enumerate(costs)]
    assert len({job.level for job in jobs}) == 2
    bench.go.set()
    for job in jobs:
        job.future.result(SOON_S)
    assert bench.told[1:] == [f"{place} 0" for place in range(8)]


def test_what_costs_about_as_much_runs_together_whatever_was_expected_of_it(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    scheduler = make()
    first, *_ = held(scheduler)
    costs = (0.0121, 0.0119, 0.01, 0.041, 0.0119)  # the first two on both sides of four times what is little
    jobs = [scheduler.submit(Task(str(place)), cost_s) for place, cost_s in enumerate(costs)]
    bench.go.set()
    for job in (first, *jobs):
        job.future.result(SOON_S)
    assert bench.told[1:] == ["0+1+2+4 0", "3 0"], "0.041 costs more than four times as much as one of the others"


def test_equal_ones_are_ahead_of_one_another_whatever_was_expected_of_them(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    scheduler = make(max_wait_s=0.03)
    held(scheduler, Task("a"), Task("b"), Task("c"), cost_s=0.0121)
    with pytest.raises(Overloaded, match="4 requests are accepted"):
        scheduler.submit(Task("d"), 0.0119)


def test_the_thread_that_computes_is_prepared_first(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    bench.go.set()
    scheduler = make(prepare=lambda: bench.threads.append(f"{current_thread().name} prepared"))
    assert scheduler.submit(Task("a"), 0.1).future.result(SOON_S) == "a"
    assert bench.threads == ["compute prepared", "compute"]


def test_what_takes_longer_than_was_thought_goes_on_in_the_thread(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    bench.go.set()
    scheduler = make()
    job = scheduler.submit(Task("a", steps=3), 1e-4, wake=False)
    scheduler.attend()

    assert job.future.result(SOON_S) == "a"
    assert bench.threads == [current_thread().name, "compute", "compute"]


def test_nothing_is_done_at_once_while_the_thread_works(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler = make()
    first, *_ = held(scheduler)
    job = scheduler.submit(Task("a"), 1e-4, wake=False)
    scheduler.attend()
    assert not job.future.done()
    bench.go.set()

    assert [first.future.result(SOON_S), job.future.result(SOON_S)] == ["first", "a"]
    assert set(bench.threads) == {"compute"}


@pytest.mark.parametrize(
    ("cost_s", "names", "expected"),
    [
        (0.02, "abaab", ["a+a 0", "b+b 0", "a 0"]),  # as many as are soon done, whoever they overtake
        (1.0, "abaab", ["a 0", "b 0", "a+a 0", "b 0"]),
        (1.0, "aaaa", ["a+a+a+a 0"]),
        (1.0, "aabb", ["a+a 0", "b+b 0"]),
    ],
)
def test_what_takes_long_does_not_let_others_be_overtaken(
    cost_s: float, names: str, expected: list[str], bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    jobs = held(make(), *(Task(name, key=name) for name in names), cost_s=cost_s)
    bench.go.set()

    assert [job.future.result(SOON_S) for job in jobs] == ["first", *names]
    assert bench.told == ["first 0", *expected]


def test_who_costs_more_and_waits_anyway_is_overtaken(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler = make()
    jobs = held(scheduler, Task("a"))
    jobs += [scheduler.submit(Task("dear", "other"), 30.0), scheduler.submit(Task("b"), 1.0)]
    bench.go.set()

    assert [job.future.result(SOON_S) for job in jobs] == ["first", "a", "dear", "b"]
    assert bench.told == ["first 0", "a+b 0", "dear 0"]


def test_what_has_no_key_runs_alone(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    jobs = held(make(), Task("a", None), Task("b", None))
    bench.go.set()

    assert [job.future.result(SOON_S) for job in jobs] == ["first", "a", "b"]
    assert bench.told == ["first 0", "a 0", "b 0"]


def test_no_more_run_together_than_fit(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    jobs = held(make(), *(Task(name, room=2) for name in "abcde"))
    bench.go.set()

    for job in jobs:
        job.future.result(SOON_S)
    assert bench.told == ["first 0", "a+b 0", "c+d 0", "e 0"]


def test_a_long_run_holds_a_short_one_up_for_one_step(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler, bench.step_s = make(), 0.01
    bench.go.set()
    long = scheduler.submit(Task("long", None, steps=100), 1.0)
    until(lambda: "long 3" in bench.told)
    short = scheduler.submit(Task("short", None), 0.01)
    before = len(bench.told)

    assert short.future.result(SOON_S) == "short"
    assert "short 0" in bench.told[: before + 2]
    assert not long.future.done()
    assert long.future.result(SOON_S) == "long"


def test_equal_ones_are_done_in_turn_however_long_they_wait(
    bench: Bench, make: Callable[..., Scheduler[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.turns._AGE_S", 0.01)
    jobs = held(make(), *(Task(name, name, steps=3) for name in "abcd"))
    bench.step_s = 0.01
    bench.go.set()

    assert [job.future.result(SOON_S) for job in jobs] == ["first", *"abcd"]
    assert bench.told == ["first 0", *(f"{name} {step}" for name in "abcd" for step in range(3))]


def test_what_costs_little_does_not_run_with_what_costs_much(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler, bench.step_s = make(), 0.01
    first, long = held(scheduler, Task("long", steps=50), cost_s=1.0)
    short = scheduler.submit(Task("short"), 0.01)
    bench.go.set()

    assert short.future.result(SOON_S) == "short"
    assert not long.future.done()
    assert [job.future.result(SOON_S) for job in (first, long)] == ["first", "long"]


def test_what_follows_a_run_may_fail_and_strands_nobody(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    def broken(jobs: Sequence[Job[str]], spent_s: float) -> None:
        raise OSError("the disk is full")

    scheduler = make(finished=broken)
    bench.go.set()
    assert [scheduler.submit(Task(name), 0.1).future.result(SOON_S) for name in "ab"] == ["a", "b"]


def end_among_short_ones(scheduler: Scheduler[str], long: Job[str]) -> None:
    """Wait for a job while there is always one that is shorter."""
    end = time.monotonic() + SOON_S
    waiting: list[Job[str]] = []
    while not long.future.done():
        assert time.monotonic() < end
        waiting = [job for job in waiting if not job.future.done()]
        while len(waiting) < 4:
            waiting.append(scheduler.submit(Task("short", None), 0.001))
        time.sleep(0.001)


def test_short_ones_that_keep_coming_do_not_starve_a_long_one(
    bench: Bench, make: Callable[..., Scheduler[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.turns._AGE_S", 0.05)
    scheduler, bench.step_s = make(), 0.005
    bench.go.set()
    long = scheduler.submit(Task("long", None, steps=4), 100.0)
    end_among_short_ones(scheduler, long)

    assert long.future.result() == "long"


def test_a_long_one_has_its_share_while_short_ones_keep_coming(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    scheduler, bench.step_s = make(), 0.005
    bench.go.set()
    long = scheduler.submit(Task("long", None, steps=40), 100.0)  # a step a second would take 40 s
    end_among_short_ones(scheduler, long)

    steps = bench.told[: bench.told.index("long 39")]
    assert len(steps) > 4 * 40  # and the short ones have most of the time


def test_a_caller_who_leaves_the_queue_costs_nothing(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler = make()
    first, left, stayed = held(scheduler, Task("left"), Task("stayed"))
    left.cancel()
    bench.go.set()

    assert stayed.future.result(SOON_S) == "stayed"
    assert bench.told == ["first 0", "stayed 0"]
    with pytest.raises(CancelledError):
        left.future.result()
    until(lambda: scheduler.in_flight == 0)
    assert scheduler.queued_cost_s == 0
    assert first.future.result() == "first"


def test_a_caller_who_leaves_a_run_strands_nobody(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    first, left, stayed = held(make(), Task("left", steps=3), Task("stayed", steps=3))
    bench.step_s = 0.02
    bench.go.set()
    until(lambda: "left+stayed 0" in bench.told)
    left.cancel()

    assert stayed.future.result(SOON_S) == "stayed"
    assert first.future.result() == "first"


def test_a_run_that_everybody_left_stops_at_its_next_step(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler, bench.step_s = make(), 0.01
    bench.go.set()
    job = scheduler.submit(Task("long", None, steps=1000), 10.0)
    until(lambda: "long 2" in bench.told)
    job.cancel()
    until(lambda: scheduler.in_flight == 0)

    assert len(bench.told) < 100
    assert scheduler.submit(Task("next"), 0.1).future.result(SOON_S) == "next"


def test_who_has_had_all_steps_is_answered_while_the_others_go_on(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    learned: list[tuple[int, float]] = []
    scheduler = make(finished=lambda jobs, spent_s: learned.append((len(jobs), spent_s)))
    bench.step_s = 0.01
    _, short, long = held(scheduler, Task("short", steps=2), Task("long", steps=30))
    bench.go.set()

    assert short.future.result(SOON_S) == "short"
    assert not long.future.done()
    assert long.future.result(SOON_S) == "long"
    assert bench.told[1:] == [f"short+long {step}" for step in range(30)]
    assert 0 < short.compute_s < long.compute_s
    assert learned[1:] == [(2, long.compute_s)], "what the whole run took"
    until(lambda: scheduler.in_flight == 0)


def test_a_fault_is_none_of_those_who_are_answered(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    bad = Task("bad", steps=3, fault=ValueError("its own"), fault_at=2)
    _, answered, failed, good = held(make(), Task("answered"), bad, Task("good", steps=3))
    bench.go.set()

    assert answered.future.result(SOON_S) == "answered"
    assert good.future.result(SOON_S) == "good"
    with pytest.raises(ValueError, match="its own"):
        failed.future.result(SOON_S)
    assert "answered 0" not in bench.told, "it is not done again"


def test_one_that_fails_fails_alone(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    _, good, bad, fine = held(make(), Task("good"), Task("bad", fault=ValueError("its own")), Task("fine"))
    bench.go.set()

    assert good.future.result(SOON_S) == "good"
    assert fine.future.result(SOON_S) == "fine"
    with pytest.raises(ValueError, match="its own"):
        bad.future.result(SOON_S)
    assert "good+bad+fine fails" in bench.told


def test_past_the_bound_a_caller_is_told_when_to_ask_again(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler = make(max_wait_s=1.5, max_jobs=5)
    jobs = held(scheduler, Task("a"))
    scheduler.check_room()
    jobs.append(scheduler.submit(Task("b"), 1.0))
    with pytest.raises(Overloaded, match="3 requests are accepted, 2 s of work ahead of this one"):
        scheduler.check_room()
    with pytest.raises(Overloaded, match="3 requests are accepted, 2 s of work ahead of this one; ask again") as told:
        scheduler.submit(Task("c"), 2.0)
    assert told.value.retry_after_s == 2
    short = scheduler.submit(Task("short"), 0.2)
    last = scheduler.submit(Task("last"), 0.1)
    with pytest.raises(Overloaded, match="5 requests are accepted"):
        scheduler.check_room()
    bench.go.set()

    assert [job.future.result(SOON_S) for job in (*jobs, short, last)] == ["first", "a", "b", "short", "last"]
    until(lambda: scheduler.in_flight == 0)
    assert scheduler.submit(Task("huge"), 100.0).future.result(SOON_S) == "huge", "an idle server takes what it can"


def test_who_would_be_late_is_refused_at_once(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler = make(max_wait_s=100.0)
    jobs = held(scheduler, Task("a"), Task("b"))
    with pytest.raises(
        Overloaded, match=r"2 s of work ahead of this one, which allows 1\.5 s; ask again later"
    ) as told:
        scheduler.submit(Task("late"), 1.0, timeout_s=1.5)
    assert told.value.retry_after_s == 2
    jobs.append(scheduler.submit(Task("c"), 1.0, timeout_s=SOON_S))
    jobs.append(scheduler.submit(Task("cheap"), 0.1, timeout_s=1.5))
    bench.go.set()

    assert [job.future.result(SOON_S) for job in jobs] == ["first", "a", "b", "c", "cheap"]


def test_what_takes_longer_than_was_expected_leaves_less_room(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    scheduler = make(max_wait_s=1.0)
    bench.step_s = 0.05
    bench.go.set()
    for _ in range(40):
        scheduler.submit(Task("slow", None), 0.02).future.result(SOON_S)
    until(lambda: scheduler.in_flight == 0)
    bench.go.clear()
    held(scheduler, Task("a"), cost_s=0.6)
    with pytest.raises(Overloaded, match=r"1\.\d+ s of work ahead of this one; ask again") as told:
        scheduler.submit(Task("b"), 0.6)

    assert told.value.retry_after_s == 2
    assert scheduler.queued_cost_s > 1


def test_pace_is_that_of_the_last_seconds_of_work() -> None:
    pace, found = Pace(), []
    for expected_s, spent_s in ((0.1, 0.1), (0.1, 0.2), (0.1, 0.05), (0.01, 1.0), (0.1, 0.1)):
        for _ in range(40):
            pace.learn(expected_s, spent_s)
        found.append(pace.times)

    assert found[:4] == [1.0, pytest.approx(2.0, rel=0.05), 1.0, 4.0]
    assert found[4] < 2.5


def test_a_long_job_keeps_no_short_one_out(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler = make(max_wait_s=1.0)
    jobs = held(scheduler, Task("long", "1"), cost_s=100.0)
    short = scheduler.submit(Task("short", "2"), 0.1)
    with pytest.raises(Overloaded, match="100 s of work ahead"):
        scheduler.submit(Task("long too", "3"), 100.0)
    bench.go.set()

    assert [job.future.result(SOON_S) for job in (*jobs, short)] == ["first", "long", "short"]


def test_what_is_late_is_given_up(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler = make()
    held(scheduler)
    late = scheduler.submit(Task("late"), 0.1, timeout_s=0.01)
    time.sleep(0.02)
    bench.go.set()

    with pytest.raises(DeadlineExceeded, match="no answer within the time allowed; ask for fewer"):
        late.future.result(SOON_S)
    assert bench.told == ["first 0"]


def test_what_becomes_late_stops_at_its_next_step(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler, bench.step_s = make(), 0.01
    bench.go.set()
    job = scheduler.submit(Task("long", None, steps=1000), 10.0, timeout_s=0.1)

    with pytest.raises(DeadlineExceeded, match="no answer within the time allowed"):
        job.future.result(SOON_S)
    assert len(bench.told) < 100


async def _drained(scheduler: Scheduler[str], timeout_s: float) -> None:
    await scheduler.drain(timeout_s)


def test_a_drain_finishes_what_was_accepted_and_takes_nothing_new(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    import asyncio

    scheduler = make()
    jobs = held(scheduler, Task("a", "1"), Task("b", "2"))
    scheduler.close()
    with pytest.raises(Draining, match="the server is stopping"):
        scheduler.submit(Task("c"), 0.1)
    bench.go.set()
    asyncio.run(_drained(scheduler, SOON_S))

    assert [job.future.result(0) for job in jobs] == ["first", "a", "b"]


def test_a_drain_that_takes_too_long_tells_those_who_wait(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    import asyncio

    scheduler = make()
    _, waiting = held(scheduler, Task("a", "1"))
    asyncio.run(_drained(scheduler, 0.05))

    with pytest.raises(Draining, match="the server has ended; ask another one"):
        waiting.future.result(0)


def test_a_thread_that_does_not_move_is_told(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    scheduler = make()
    assert scheduler.stalled_s == 0
    held(scheduler)
    time.sleep(0.05)
    assert scheduler.stalled_s > 0.04
    bench.go.set()
    until(lambda: scheduler.in_flight == 0)
    assert scheduler.stalled_s == 0


def test_while_results_are_on_their_way_the_next_run_is_begun(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    there = [Event(), Event()]
    _, a, b = held(make(), Task("a", "1", there=there[0]), Task("b", "2", there=there[1]))
    bench.go.set()
    until(lambda: "a awaited" in bench.told)
    assert bench.told == ["first 0", "a 0", "b 0", "a awaited"], "the oldest is, once nothing else is to be done"
    assert not any(job.future.done() for job in (a, b))

    there[0].set()
    assert a.future.result(SOON_S) == "a"
    assert not b.future.done()
    there[1].set()
    assert b.future.result(SOON_S) == "b"
    assert bench.told[4:] == ["b awaited"]


def test_no_more_than_one_is_begun_meanwhile_so_that_what_comes_runs_together(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    scheduler, there = make(), [Event(), Event()]
    held(scheduler, Task("a", "1", there=there[0]), Task("b", "2", there=there[1]))
    bench.go.set()
    until(lambda: "a awaited" in bench.told)
    others = [scheduler.submit(Task(name), 1.0) for name in "cde"]
    assert bench.told[-1] == "a awaited"
    there[0].set()

    assert [job.future.result(SOON_S) for job in others] == [*"cde"]
    assert bench.told[4] == "c+d+e 0"
    assert not there[1].is_set(), "b is on its way still"
    there[1].set()


def test_a_run_whose_results_are_on_their_way_holds_up_no_plain_one(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    there = Event()
    _, late, *plain = held(make(), Task("late", "1", there=there), Task("a", "2"), Task("b", "3"))
    bench.go.set()
    assert [job.future.result(SOON_S) for job in plain] == ["a", "b"]
    assert not late.future.done()
    there.set()
    assert late.future.result(SOON_S) == "late"


def test_results_are_waited_for_before_a_run_goes_on_that_waits_itself(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    scheduler, there, bench.step_s = make(), Event(), 0.005
    bench.go.set()
    long = scheduler.submit(Task("long", None, steps=60), 1.0)
    until(lambda: "long 3" in bench.told)
    short = scheduler.submit(Task("short", None, there=there), 0.01)
    until(lambda: "short awaited" in bench.told)
    at = bench.told.index("short 0")
    assert bench.told[at:] == ["short 0", "short awaited"]
    there.set()

    assert short.future.result(SOON_S) == "short"
    assert long.future.result(SOON_S) == "long"


@pytest.mark.parametrize("how", ["leaves", "late"])
def test_results_that_nobody_waits_for_any_more_cost_nothing(
    bench: Bench, make: Callable[..., Scheduler[str]], how: str
) -> None:
    scheduler, never, bench.step_s = make(), Event(), 0.1
    held(scheduler)
    gone = scheduler.submit(Task("gone", "1", there=never), 0.01, timeout_s=0.25 if how == "late" else SOON_S)
    slow = scheduler.submit(Task("slow", "2"), 1.0)
    bench.go.set()
    until(lambda: "slow 0" in bench.told)
    if how == "leaves":
        gone.cancel()

    assert slow.future.result(SOON_S) == "slow"
    until(lambda: scheduler.in_flight == 0 and not scheduler._accepted.active)
    assert bench.told == ["first 0", "gone 0", "slow 0"], "nobody waits for what nobody wants"
    assert scheduler.queued_cost_s == 0
    with pytest.raises((CancelledError, DeadlineExceeded)):
        gone.future.result(0)


def test_results_that_do_not_come_fail_their_own_alone(bench: Bench, make: Callable[..., Scheduler[str]]) -> None:
    there = Event()
    bad = Task("bad", there=there, lost=ValueError("its own"))
    _, good, failed, other = held(make(), Task("good"), bad, Task("other", "other"))
    bench.go.set()
    until(lambda: "good+bad awaited" in bench.told)
    there.set()

    assert [job.future.result(SOON_S) for job in (good, other)] == ["good", "other"]
    with pytest.raises(ValueError, match="its own"):
        failed.future.result(SOON_S)
    assert bench.told[-2:] == ["bad 0", "bad awaited"]
    assert "good 0" in bench.told, "each was tried alone"


class Lost(Event):
    """What cannot be asked for any more."""

    def is_set(self) -> bool:
        raise RuntimeError("the device is lost")

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


def test_who_cannot_be_asked_whether_results_are_there_ends_alone(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    _, lost, other = held(make(), Task("lost", "1", there=Lost()), Task("other", "2"))
    bench.go.set()
    assert other.future.result(SOON_S) == "other"
    with pytest.raises(RuntimeError, match="the device is lost"):
        lost.future.result(SOON_S)


def test_little_ones_are_launched_together_and_answered_where_they_were_attended_to(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    bench.go.set()
    scheduler, there = make(), [Event(), Event(), Event()]
    jobs = [
        scheduler.submit(Task(name, name, there=own), 1e-4, wake=False) for name, own in zip("abc", there, strict=True)
    ]
    timers = [Timer(0.05 * (place + 1), own.set) for place, own in enumerate(there)]
    for timer in timers:
        timer.start()
    while scheduler.attend():
        pass

    assert [job.future.result(0) for job in jobs] == [*"abc"]
    assert bench.told[:3] == ["a 0", "b 0", "a awaited"]
    assert set(bench.threads) == {current_thread().name}


def test_what_a_run_took_is_until_its_results_were_there_but_not_what_another_took(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    there = [Event(), Event()]
    _, a, b = held(make(), Task("a", "1", there=there[0]), Task("b", "2", there=there[1]))
    began = time.monotonic()
    bench.go.set()
    until(lambda: "b 0" in bench.told)
    for place, own in enumerate(there):
        Timer(0.2 + 0.1 * place, own.set).start()
    for job in (a, b):
        job.future.result(SOON_S)
    took_s = time.monotonic() - began

    assert a.compute_s > 0.15
    assert b.compute_s > 0.05
    assert a.compute_s + b.compute_s < 1.2 * took_s, "one after the other"


def test_results_that_nobody_waits_for_any_more_keep_no_run_from_being_begun(
    bench: Bench, make: Callable[..., Scheduler[str]]
) -> None:
    there, bench.step_s = Event(), 0.1
    _, a, gone, c = held(make(), Task("a", "1", there=there), Task("gone", "2", there=Event()), Task("c", "3"))
    bench.go.set()
    until(lambda: "gone 0" in bench.told)
    gone.cancel()

    assert c.future.result(SOON_S) == "c"
    assert bench.told[:4] == ["first 0", "a 0", "gone 0", "c 0"]
    there.set()
    assert a.future.result(SOON_S) == "a"
