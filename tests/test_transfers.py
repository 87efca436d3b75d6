"""What a GPU is told and asked, with stand-ins for its calls: copies that wait for nothing, chunks that overlap."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from service.clock import Clock
from service.graph.rates import cache_of
from service.transfers import _stream, received, sent

GPU, CPU = torch.device("cuda", 1), torch.device("cpu")


class Value:
    """A tensor that notes what is done with it, and in which stream."""

    def __init__(self, streams: "Streams", device: torch.device = GPU) -> None:
        self.streams, self.device = streams, device
        self.is_cuda, self.is_cpu = device.type == "cuda", device.type == "cpu"

    def __getattr__(self, name: str) -> Callable[..., "Value"]:
        def done(*given: Any, **named: Any) -> Value:
            self.streams.did.append((self.streams.now, name, *given, *named.values()))
            return self

        return done


class Stream:
    """What a GPU does in an order of its own."""

    def __init__(self, streams: "Streams", name: str) -> None:
        self.streams, self.name = streams, name

    def wait_stream(self, other: "Stream") -> None:
        self.streams.did.append((self.name, "waits for", other.name))

    def record_event(self) -> "Ended":
        self.streams.did.append((self.name, "is noted"))
        return Ended(self.streams)

    def __repr__(self) -> str:
        return self.name


class Ended:
    """The moment at which what a stream was told is done."""

    def __init__(self, streams: "Streams") -> None:
        self.streams, self.is_over = streams, False

    def query(self) -> bool:
        return self.is_over

    def synchronize(self) -> None:
        self.streams.did.append("the host waits")
        self.is_over = True


class Streams:
    """Those of a GPU, the one that things are done in now, and what was done."""

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.now = "computing"
        self.computing, self.apart = Stream(self, "computing"), dict[str, Stream]()

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream.name
        yield
        self.now = before

    def of(self, device: torch.device, way: str) -> Stream:
        assert device == GPU
        return self.apart.setdefault(way, Stream(self, way))


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


@pytest.fixture
def streams(gpu: None, monkeypatch: pytest.MonkeyPatch) -> Streams:
    found = Streams()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: found.computing)
    monkeypatch.setattr(torch.cuda, "stream", found.within)
    monkeypatch.setattr("service.transfers._stream", found.of)
    return found


def test_what_is_sent_is_copied_apart_and_there_for_all_that_is_computed_next(streams: Streams) -> None:
    sent(Value(streams, CPU), GPU)  # type: ignore[arg-type] # a stand-in
    assert streams.did == [
        ("sending", "pin_memory"),
        ("sending", "to", GPU, True),
        ("computing", "waits for", "sending"),
        ("computing", "record_stream", streams.computing),
    ]


def test_what_is_on_the_cpu_and_stays_there_is_not_touched(streams: Streams) -> None:
    x = Value(streams, CPU)
    assert sent(x, CPU) is x  # type: ignore[arg-type,comparison-overlap] # a stand-in
    assert not streams.did


@pytest.mark.parametrize(("at", "to"), [(GPU, GPU), (GPU, CPU)])
def test_what_is_there_or_goes_elsewhere_is_not_pinned(streams: Streams, at: torch.device, to: torch.device) -> None:
    sent(Value(streams, at), to)  # type: ignore[arg-type] # a stand-in
    assert streams.did == [("computing", "to", to)]


def test_what_is_received_is_copied_once_it_is_computed_and_waited_for_by_who_wants_it(streams: Streams) -> None:
    mean, kept = Value(streams), Value(streams, CPU)
    receipt = received([{"mean": mean, "samples": kept}, {"mean": mean}])  # type: ignore[dict-item] # stand-ins
    receiving = streams.apart["receiving"]
    copied = [("receiving", "record_stream", receiving), ("receiving", "to", "cpu", True)]
    assert streams.did == [
        *[("computing", "contiguous")] * 3,
        ("receiving", "waits for", "computing"),
        *copied,
        ("receiving", "to", "cpu", True),
        *copied,
        ("receiving", "is noted"),
    ]
    assert not receipt.is_ready()
    streams.did.clear()
    assert receipt.tensors() == [{"mean": mean, "samples": kept}, {"mean": mean}]
    assert streams.did == ["the host waits"]
    assert receipt.is_ready()


def test_each_way_has_a_stream_of_its_own_and_none_that_graphs_are_captured_in(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[torch.device, int]] = []

    def stream(device: torch.device, priority: int) -> int:
        made.append((device, priority))
        return len(made)

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    _stream.cache_clear()
    try:
        asked = [(GPU, "sending"), (GPU, "receiving"), (GPU, "sending"), (torch.device("cuda", 2), "sending")]
        assert [_stream(*each) for each in asked] == [1, 2, 1, 3]
    finally:
        _stream.cache_clear()
    assert made == [(GPU, -1), (GPU, -1), (torch.device("cuda", 2), -1)], "torch captures in streams of priority 0"


def test_on_the_cpu_what_is_received_is_what_was_there() -> None:
    x = torch.randn(2, 3)
    receipt = received([{"mean": x, "variance": x.T}])
    assert receipt.is_ready()
    assert receipt.tensors()[0]["mean"] is x
    assert receipt.tensors()[0]["variance"].is_contiguous()


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
