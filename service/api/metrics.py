"""What is counted and how Prometheus reads it; it does not know routes, schedules or who scrapes.

Where PROMETHEUS_MULTIPROC_DIR is set before this is imported, the counts of several processes are one view: of what
each has added, which is soon.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.api.tallies import Many, Tallies
from service.api.uncertainty import Uncertainty

if TYPE_CHECKING:
    from service.prediction import Prediction

SHARED = "PROMETHEUS_MULTIPROC_DIR"
OTHER = "other"
_MOST_REASONS = 48
_REASON = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8)
_RATIOS = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
_MANY = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Figure:
    """One metric.

    Attributes:
        kind: `counter`, `gauge` or `histogram`.
        help: What it is, with its unit.
        labels: The labels' names; each takes few values, whatever is asked.
        buckets: Upper bounds of a histogram.
        merge: How a gauge of several processes becomes one.
    """

    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: str = "livesum"

    def made(self, name: str, registry: CollectorRegistry) -> Counter | Gauge | Many:
        """Return the metric, registered."""
        if self.kind == "counter":
            return Counter(name, self.help, self.labels, registry=registry)
        if self.kind == "gauge":
            return Gauge(name, self.help, self.labels, registry=registry, multiprocess_mode=self.merge)  # type: ignore[arg-type] # one of its literals
        return Many(name, self.help, self.labels, registry=registry, buckets=(*self.buckets, inf))


_OUTPUT = ("model", "output")
FIGURES: Mapping[str, Figure] = MappingProxyType(
    {
        "thinnet_requests_total": Figure("counter", "requests answered", ("route", "status", "reason")),
        "thinnet_request_seconds": Figure(
            "histogram", "from a request's head to the end of its answer (seconds)", ("route",), _SECONDS
        ),
        "thinnet_queue_seconds": Figure(
            "histogram", "what a request waited for its run (seconds)", ("model",), _SECONDS
        ),
        "thinnet_compute_seconds": Figure("histogram", "what a run computed (seconds)", ("model",), _SECONDS),
        "thinnet_run_cost_seconds": Figure("histogram", "a run's estimated cost (seconds)", ("model",), _SECONDS),
        "thinnet_run_requests": Figure("histogram", "requests that ran together", ("model",), _MANY),
        "thinnet_passes_total": Figure("counter", "stochastic passes run", ("model",)),
        "thinnet_rows_total": Figure("counter", "rows predicted", ("model",)),
        "thinnet_rejected_total": Figure("counter", "requests refused before they ran", ("reason",)),
        "thinnet_in_flight": Figure("gauge", "predictions accepted and not answered"),
        "thinnet_queued_cost_seconds": Figure("gauge", "estimated work accepted and not done (seconds)"),
        "thinnet_stalled_seconds": Figure(
            "gauge", "how long there was work and no progress (seconds)", merge="livemax"
        ),
        "thinnet_ready": Figure("gauge", "1 where /health/ready answers 200", merge="livemin"),
        "thinnet_model_ready": Figure("gauge", "1 where a model can be served", ("model",), merge="livemin"),
        "thinnet_model_info": Figure(
            "gauge", "1 for the version that is served unasked", ("model", "version"), merge="livemax"
        ),
        "thinnet_build_info": Figure(
            "gauge", "1, with what is running", ("version", "python", "torch"), merge="livemax"
        ),
        "thinnet_resident_memory_bytes": Figure("gauge", "memory held, summed over processes (bytes)"),
        "thinnet_log_lines_lost": Figure("gauge", "log lines that could not be written since the start"),
        "thinnet_entropy_nats": Figure("histogram", "entropy of the mean probabilities (nats)", _OUTPUT, _NATS),
        "thinnet_mutual_information_nats": Figure(
            "histogram", "the network's own share of the entropy (nats)", _OUTPUT, _NATS
        ),
        "thinnet_relative_deviation": Figure(
            "histogram", "√variance / |mean| of outputs without an entropy", _OUTPUT, _RATIOS
        ),
    }
)
_OF_QUANTITY = {
    "entropy": "thinnet_entropy_nats",
    "mutual_information": "thinnet_mutual_information_nats",
    "relative_deviation": "thinnet_relative_deviation",
}


class Metrics:
    """The counts of one application; its methods may be called from any thread.

    Attributes:
        registry: What holds them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._figures = {name: figure.made(name, self.registry) for name, figure in FIGURES.items()}
        if not is_shared():  # of several processes it would show the one that happens to answer
            ProcessCollector(registry=self.registry)
        self._children: dict[tuple[str, ...], Counter | Gauge | Many] = {}
        self._tallies = Tallies()
        self._reasons: set[str] = set()
        self._models: set[tuple[str, str]] = set()
        self._uncertainty = Uncertainty()

    def request(self, route: str, status: int, reason: str, seconds: float) -> None:
        """Count a request that was answered.

        Args:
            route: Its route's template, never its path.
            status: What was answered.
            reason: Why, as one word of a few: `ok`, `invalid_input`, `queue_full`, …
            seconds: How long it took.
        """
        self._add("thinnet_requests_total", 1, route, str(status), self._bounded(reason))
        self._observe("thinnet_request_seconds", [seconds], route)

    def ran(self, model: str, requests: int, rows: int, passes: int, cost_s: float, compute_s: float) -> None:
        """Count one run of one or several requests.

        Args:
            model: Whose.
            requests: How many ran together.
            rows: Of all of them.
            passes: Of the run.
            cost_s: What it was estimated to take.
            compute_s: What it took.
        """
        self._add("thinnet_rows_total", rows, model)
        self._add("thinnet_passes_total", passes, model)
        self._observe("thinnet_run_requests", [requests], model)
        self._observe("thinnet_run_cost_seconds", [cost_s], model)
        self._observe("thinnet_compute_seconds", [compute_s], model)

    def queued(self, model: str, seconds: float) -> None:
        """Count what a request waited for its run."""
        self._observe("thinnet_queue_seconds", [seconds], model)

    def rejected(self, reason: str) -> None:
        """Count a request that was refused before it ran, for one of a few reasons."""
        self._add("thinnet_rejected_total", 1, self._bounded(reason))

    def predicted(self, model: str, prediction: "Prediction") -> None:
        """Add a few values of a prediction's uncertainty to the model's histograms, with what is added next."""
        if self._uncertainty.note(model, prediction):
            self.add()

    def gauge(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        figure = self._child(name, *labels)
        assert isinstance(figure, Gauge)
        figure.set(value)

    def models(self, served: Iterable[tuple[str, str]]) -> None:
        """Tell which version of each model is served unasked."""
        now = set(served)
        for model, version in self._models - now:
            self.gauge("thinnet_model_info", 0, model, version)
        for model, version in now:
            self.gauge("thinnet_model_info", 1, model, version)
        self._models = now

    def add(self) -> None:
        """Add what was counted lately, so that it is seen from other processes too."""
        for quantity, values, model, output in self._uncertainty.taken():
            self._observe(_OF_QUANTITY[quantity], values, model, output)
        self._tallies.add()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return what Prometheus reads and its content type, in the format that an Accept header prefers."""
        self.add()
        encode, content_type = choose_encoder(accept)
        view = self.registry
        if is_shared():
            view = CollectorRegistry()
            MultiProcessCollector(view)  # type: ignore[no-untyped-call] # it ships without types
        return encode(view), content_type

    def _add(self, name: str, amount: float, *labels: str) -> None:
        figure = self._child(name, *labels)
        assert isinstance(figure, Counter)
        self._tallies.note(figure, amount)

    def _observe(self, name: str, values: Iterable[float], *labels: str) -> None:
        """Add values to a histogram; what is not finite is left out, and a sum never falls."""
        figure = self._child(name, *labels)
        assert isinstance(figure, Many)
        for value in values:
            if isfinite(value):
                self._tallies.note(figure, max(0.0, value))

    def _child(self, name: str, *labels: str) -> Counter | Gauge | Many:
        """Return the metric of these labels; kept, since the library takes long to find it."""
        key = (name, *labels)
        if key not in self._children:
            figure = self._figures[name]
            self._children[key] = figure.labels(*labels) if labels else figure
        return self._children[key]

    def _bounded(self, reason: str) -> str:
        """Return a reason that may be a label: a plain word, and no more of them than can be kept."""
        if reason in self._reasons:
            return reason
        if len(self._reasons) >= _MOST_REASONS or not _REASON.fullmatch(reason):
            return OTHER
        self._reasons.add(reason)
        return reason


def is_shared() -> bool:
    """Tell whether several processes count together."""
    return SHARED in os.environ


def forget_dead(folder: Path) -> None:
    """Forget the gauges of processes that are no more, in the folder where they count together."""
    for place in folder.glob("gauge_live*_*.db"):
        pid = place.stem.rpartition("_")[2]
        if not Path("/proc", pid).exists():
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call] # it ships without types
