"""What a GPU is told and asked, with stand-ins for its calls: copies that wait for nothing, chunks that overlap."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from service.clock import Clock
from service.graph.rates import cache_of
from service.transfers import received, sent

GPU, CPU = torch.device("cuda", 1), torch.device("cpu")


class Value:
    """A tensor that notes what is done with it."""

    is_cuda = True

    def __init__(self, did: list[Any], device: torch.device = GPU) -> None:
        self.did, self.device = did, device

    def __getattr__(self, name: str) -> Callable[..., "Value"]:
        def done(*given: Any, **named: Any) -> Value:
            self.did.append((name, *given, *named.items()))
            return self

        return done


class Event:
    """A moment on a GPU, by a clock that goes on a second with each; it notes who waits for it."""

    now, waited = 0, list[int]()

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0

    def record(self, stream: str) -> None:
        assert stream == f"stream of {GPU}"
        Event.now += 1
        self.at = Event.now

    def synchronize(self) -> None:
        Event.waited.append(self.at)

    def elapsed_time(self, end: "Event") -> float:
        return 1000.0 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(Event, "now", 0)
    monkeypatch.setattr(Event, "waited", [])


@pytest.mark.usefixtures("gpu")
def test_what_is_sent_is_pinned_and_waits_for_nothing() -> None:
    did: list[Any] = []
    sent(Value(did, CPU), GPU)  # type: ignore[arg-type] # a stand-in
    assert did == [("pin_memory",), ("to", GPU, ("non_blocking", True))]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("at", "to"), [(CPU, CPU), (GPU, GPU), (GPU, CPU)])
def test_what_is_there_or_goes_elsewhere_is_not_pinned(at: torch.device, to: torch.device) -> None:
    did: list[Any] = []
    sent(Value(did, at), to)  # type: ignore[arg-type] # a stand-in
    assert did == [("to", to)]


@pytest.mark.usefixtures("gpu")
def test_what_is_received_is_waited_for_once_after_all_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[Any] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Value(did))
    received({"mean": Value(did), "variance": Value(did)})  # type: ignore[dict-item] # stand-ins
    copy = ("to", "cpu", ("non_blocking", True))
    assert did == [("contiguous",), copy, ("contiguous",), copy, ("synchronize",)]


def test_on_the_cpu_what_is_received_is_what_was_there() -> None:
    x = torch.randn(2, 3)
    assert received({"mean": x})["mean"] is x
    assert received({"mean": x.T})["mean"].is_contiguous()


@pytest.mark.usefixtures("gpu")
def test_a_chunk_is_waited_for_once_the_next_one_is_launched() -> None:
    clock = Clock(GPU)
    clock.begin()
    assert clock.end(8) is None
    assert Event.waited == []
    Event.now += 5
    clock.begin()
    assert clock.end(16) == (8, 1.0)
    assert Event.waited == [2]
    clock.begin()
    assert clock.end(4) == (16, 1.0)
    assert Event.waited == [2, 9]


def test_on_the_cpu_a_chunk_is_over_when_its_call_is(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1.0, 1.5, 2.0, 2.0))
    monkeypatch.setattr("service.clock.perf_counter", lambda: next(times))
    clock = Clock(CPU)
    clock.begin()
    assert clock.end(8) == (8, 0.5)
    clock.begin()
    assert clock.end(8) == (8, 1e-6)


@pytest.mark.usefixtures("gpu")
def test_a_gpus_chunks_are_as_large_as_its_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        L2_cache_size = 50 << 20

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert (cache_of(GPU), cache_of(CPU)) == (50 << 20, 0)
