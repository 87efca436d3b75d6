"""What breaks in production, broken on purpose under load: no hang, no wrong answer, nothing lost that was accepted."""

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from asks import Ask, heavy, light, questions, save_folder
from callers import BROKEN, Answer, call, for_a_while, leave, run, session, together
from process import Served, serving
from same import difference
from sizes import Sizes

SOON_S = 5.0


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Iterator[Served]:
    """A server that the test may leave broken."""
    with serving(folder, tmp_path / "log") as found:
        yield found


def plain(count: int, seed: int = 3) -> list[Ask]:
    """Return questions whose answer is the same every time."""
    return [ask for ask in questions(4 * count, seed) if not ask.is_fresh][:count]


def wrong(asks: list[Ask], answers: list[Answer], alone: list[Answer]) -> list[str]:
    """Return in what answers differ from those that the questions got alone."""
    told = []
    for ask, mine, other in zip(asks, answers, alone, strict=True):
        if mine.status != other.status:
            told.append(f"status {mine.status}, alone {other.status}")
        else:
            told.append(difference(ask.read(mine.body, mine.headers or {}), ask.read(other.body, other.headers or {})))
    return [each for each in told if each]


def test_callers_who_leave_strand_nobody_and_leave_nothing_behind(served: Served, sizes: Sizes) -> None:
    asks = plain(40)
    alone = run(together(served.address, asks, 1))
    sockets = served.open_sockets()

    async def crowd() -> list[Answer]:
        chance = random.Random(4)
        left = [heavy(200, seed=seed) for seed in range(4)] + asks
        gate = asyncio.Semaphore(32)

        async def leaver() -> None:
            async with gate:
                await leave(served.address, chance.choice(left), chance)

        leavers = asyncio.gather(*(leaver() for _ in range(sizes.leavers)))
        answers = await together(served.address, asks, 8)
        await leavers
        return answers

    answers = run(crowd())
    assert not (found := wrong(asks, answers, alone)), found[:5]
    assert run(together(served.address, [light()], 1))[0].status == 200  # taken on behind all who left
    await_until(lambda: served.open_sockets() <= sockets, SOON_S)


@pytest.mark.slow
def test_who_has_left_costs_nothing_any_more(own: Served) -> None:
    """Each of them alone takes as long as `whole_s`; all leave, and the next caller waits for none."""
    ask = heavy(3000)
    whole_s = min(each.took_s for each in run(together(own.address, [ask] * 2, 1)))

    async def crowd() -> Answer:
        chance = random.Random(5)
        await asyncio.gather(
            *(leave(own.address, heavy(3000, seed=seed), chance, after_s=0.2) for seed in range(1, 13))
        )
        async with session(own.address) as calls:
            return await call(calls, light())

    answer = run(crowd())
    print(f"\none of 12 takes {whole_s:.2f} s alone; who came after they left waited {answer.took_s:.2f} s")
    assert answer.status == 200
    assert answer.took_s < max(2 * whole_s, 0.2)
    began = own.compute_s()
    time.sleep(1)
    assert own.compute_s() - began < 0.3


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    told = subprocess.run([sys.executable, "-m", "service", "serve", "--help"], capture_output=True, text=True)
    assert "--workers" in told.stdout, "thinnet serve has no --workers"
    with serving(folder, tmp_path / "log", "--workers", "2", OMP_NUM_THREADS="1") as own:
        asks = plain(60)
        alone = run(together(own.address, asks, 1))
        before = workers(own)
        assert len(before) >= 2

        async def killing() -> tuple[list[Answer], list[Answer]]:
            async with session(own.address) as calls:
                chance = random.Random(6)
                busy = asyncio.create_task(for_a_while(calls, lambda: chance.choice(asks), 16, 6))
                await asyncio.sleep(2)
                before[0].kill()
                every = await busy
            return every, await together(own.address, asks, 4)

        every, after = run(killing())
        broken = sum(each.status == BROKEN for each in every)
        print(f"\n{len(every)} answers, {broken} broken off by the worker's end")
        assert {each.status for each in every} <= {200, 400, 503, BROKEN}
        assert broken <= 16  # what that worker held; a caller may ask again
        assert not (found := wrong(asks, after, alone)), found[:5]
        await_until(lambda: len(workers(own)) >= len(before) and is_ready(own), 60)


def workers(own: Served) -> list[psutil.Process]:
    """Return the processes below the server's parent that hold torch."""
    return [each for each in own.tree()[1:] if each.is_running() and each.memory_info().rss > 100e6]


def is_ready(own: Served) -> bool:
    async def asked() -> int:
        async with session(own.address) as calls, calls.get("/v2/health/ready") as answer:
            return answer.status

    return run(asked()) == 200


def await_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_termination_under_load_loses_nothing_that_was_accepted(own: Served) -> None:
    """All were sent before the signal: each is answered, or refused with 503 where it was still queued."""
    asks = [heavy(400, seed=seed) for seed in range(16)]
    alone = run(together(own.address, asks[:4], 1))

    async def ending() -> tuple[list[Answer], list[Answer]]:
        async with session(own.address) as calls, session(own.address) as later:
            sent = [asyncio.create_task(call(calls, ask)) for ask in asks]
            await asyncio.sleep(0.3)
            own.process.send_signal(signal.SIGTERM)
            late = [asyncio.create_task(call(later, light())) for _ in range(4)]
            return list(await asyncio.gather(*sent)), list(await asyncio.gather(*late))

    began = time.monotonic()
    sent, late = run(ending())
    code = own.process.wait(60)
    statuses = Counter(each.status for each in sent)
    print(f"\nsent before the signal {dict(statuses)}, after it {Counter(each.status for each in late)}, code {code}")
    assert set(statuses) <= {200, 503}
    assert statuses[200] > 0
    assert {each.status for each in late} <= {200, 503, BROKEN}
    kept = [place for place in range(4) if sent[place].status == 200]
    assert not wrong(*([each[place] for place in kept] for each in (asks, sent, alone)))
    assert code in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_model_file_corrupted_while_serving_harms_no_answer(tmp_path: Path) -> None:
    """In place, as a failed copy does it, and in a new version: what is loaded goes on and the log says why."""
    folder = save_folder(tmp_path / "models")
    with serving(folder, tmp_path / "log") as own:
        asks = plain(40)
        alone = run(together(own.address, asks, 1))

        def is_told(text: str) -> bool:
            assert not (found := wrong(asks, run(together(own.address, asks, 8)), alone)), found[:5]
            return any(text in each["message"] for each in own.told())

        shutil.copytree(folder / "line" / "2", folder / "line" / "3")
        shutil.copytree(folder, tmp_path / "whole")
        spoilt = [spoil(each, cut="3" not in each.parts) for each in folder.glob("*/*/program.pt2")]
        assert not is_told("goes on with")
        own.process.send_signal(signal.SIGHUP)
        await_until(lambda: is_told("generation 1 serves"), 60)
        errors = [each["message"] for each in own.told() if each["level"] == "error"]
        for program in spoilt:
            name = program.parts[-3]
            (reason,) = (each for each in errors if str(program) in each)
            assert reason.startswith(f"model {name} goes on with version {2 if name == 'line' else 1}: ")
        assert len(errors) == len(spoilt)
        assert is_ready(own)
        assert run(together(own.address, [third()], 1))[0].status == 503

        others = [place for place, ask in enumerate(asks) if ask.question["model"] != "line"]  # which becomes version 3
        asks, alone = ([each[place] for place in others] for each in (asks, alone))
        shutil.copytree(tmp_path / "whole", folder, dirs_exist_ok=True)
        own.process.send_signal(signal.SIGHUP)
        await_until(lambda: is_told("generation 2 serves"), 60)
        assert run(together(own.address, [third()], 1))[0].status == 200
        assert "Traceback" not in own.log.read_text()


def spoil(program: Path, *, cut: bool) -> Path:
    """Write zeros into a file, cut it or leave it as long as it is, and return its place."""
    with program.open("r+b") as file:
        if cut:
            file.truncate(program.stat().st_size // 2)
        file.seek(100)
        file.write(b"\0" * 64)
    return program


def third() -> Ask:
    """Return a question to the version that comes while the server runs."""
    return Ask({**light().question, "version": 3})


@pytest.mark.slow
def test_a_full_disk_for_logs_stops_no_answer(folder: Path, tmp_path: Path) -> None:
    """Standard error is full and who read standard output is gone."""
    with serving(folder, tmp_path / "log", logs_fail=True, THINNET_MAX_ROWS="20") as own:
        asks = [*plain(40), heavy(20, rows=30)]
        first = run(together(own.address, asks, 1))
        assert first[-1].status == 413
        assert {each.status for each in first} == {200, 400, 413}
        assert not (found := wrong(asks, run(together(own.address, asks, 8)), first)), found[:5]
        for ask in asks[:8]:
            run(leave(own.address, ask, random.Random(7)))
        assert run(together(own.address, [light()], 1))[0].status == 200
        assert own.end() in (0, -signal.SIGTERM)
