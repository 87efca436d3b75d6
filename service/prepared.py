"""What questions of one kind have in common, made once and kept: their plan, passes and quantities; it knows no rows.

To make it takes longer than to answer a small question.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from service.ask import Asked, quantities_of
from service.conditional import check_linear
from service.errors import BadRequest, NoActiveSite
from service.graph.capture import Captured
from service.graph.compiled import Compiled
from service.graph.precision import FLOAT32, TF32
from service.graph.sites import Site
from service.graph.sources import forget_sources
from service.plan import Plan, choose_passes, make_plan
from service.quantities import known_noise, needs_samples
from service.run import Run
from service.signature import Output

_PLANS_KEPT = 32
_KINDS_KEPT = 256
_LONGEST = 4096  # characters of what is asked for; nothing longer is kept
_EXACT = ("every active site is integrated: mean and variance are exact, whatever the passes and the seed",)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Prepared:
    """A kind of question, checked and ready.

    Attributes:
        run: Its plan.
        passes: How many passes it runs, or may run with a tolerance.
        wanted: The quantities of each output.
        keeps_passes: Whether every pass must be kept, so that rows × passes must fit into memory.
        noise: For each output, whether the observation noise is `known` or `unknown`.
        notes: What the caller should know of how it is served.
    """

    run: Run
    passes: int
    wanted: tuple[tuple[str, ...], ...]
    keeps_passes: bool
    noise: Mapping[str, str]
    notes: tuple[str, ...]


class Preparation:
    """A network's plans and the kinds of question about it; its methods may be called from any thread.

    Args:
        captured: The network.
        sites: Where it can be random.
        outputs: What its outputs mean.
        couples_rows: Whether a row's answer depends on the other rows of its batch.
    """

    def __init__(
        self, captured: Captured, sites: Sequence[Site], outputs: Sequence[Output], couples_rows: bool
    ) -> None:
        self._captured, self._sites, self._outputs, self._couples_rows = captured, sites, outputs, couples_rows
        self._plans: _Latest[Compiled] = _Latest(_PLANS_KEPT)
        self._kinds: _Latest[Prepared] = _Latest(_KINDS_KEPT)
        self._compiling = Lock()
        self._eval_modules = tuple(
            f"module {module} runs in eval mode: if it is random in training, that is not in the variance"
            for module in captured.lost
        )

    def find(self, asked: Asked, variant: str, passes: int) -> Prepared | None:
        """Return what a question needs where it is there already.

        Args:
            asked: What the caller said.
            variant: The variant where the caller names none.
            passes: The number of passes where nothing names it.
        """
        return self._kinds.find(_kind(asked, variant, passes))

    def of(self, asked: Asked, variant: str, passes: int) -> Prepared:
        """Return what a question needs, made where it is not there.

        Raises:
            BadRequest, InvalidPlan, InvalidQuantity: What is asked for is not served.
        """
        kind = _kind(asked, variant, passes)
        found = self._kinds.find(kind)
        if found is None:
            found = self._prepare(asked, variant, passes)
            if len(kind) <= _LONGEST:
                self._kinds.keep(kind, found)
        return found

    def compile(self, plan: Plan, precision: str = FLOAT32, integrated: bool = False) -> Compiled:
        """Return a plan, ready to run.

        Raises:
            NoActiveSite: None of its sites reaches an output.
        """
        key = precision, integrated, frozenset(plan.items())
        with self._compiling:
            if (found := self._plans.find(key)) is not None:
                return found
            compiled = Compiled(
                self._captured, plan, precision, tuple(x.name for x in self._outputs) if integrated else ()
            )
            if not integrated and not any(compiled.stochastic):
                raise NoActiveSite(f"the sites {', '.join(plan)} do not reach any output; activate others")
            if gone := self._plans.keep(key, compiled):
                self._kinds.drop(lambda each: each.run.compiled in gone)
            forget_sources()
        return compiled

    def clear(self) -> None:
        """Let go of everything that is kept."""
        self._plans.drop(lambda _: True)
        self._kinds.drop(lambda _: True)

    def _prepare(self, asked: Asked, variant: str, passes: int) -> Prepared:
        plan = make_plan(self._sites, asked.variant or variant, asked.p, asked.sites)
        passes = choose_passes(plan, asked.passes, passes, asked.tolerance)
        ask = asked.of_passes(passes, default_seed=0)  # checked before anything is compiled
        if ask.per_row and self._couples_rows:
            raise BadRequest(
                "scope 'row' gives rows networks of their own, but this network couples its rows; use 'pass'"
            )
        device = self._captured.example[0].device
        if ask.precision == TF32 and device.type == "cpu":
            raise BadRequest(
                f"precision = {TF32!r} is of GPUs, and this network runs on the {device}; ask for float32 or "
                "bfloat16, or serve it with `--device cuda`"
            )
        wanted = tuple(quantities_of(self._outputs, asked.quantities, ask.tolerance))
        compiled = self.compile(plan, ask.precision)
        of_rows = compiled.row_notes if ask.per_row else ()
        notes = (*self._eval_modules, *compiled.notes, *of_rows, *self._fixed_outputs(compiled))
        if ask.integrates:
            for output, names in zip(self._outputs, wanted, strict=True):
                check_linear(output, names)
            compiled = self.compile(plan, integrated=True)
            notes += _EXACT if not any(compiled.stochastic) else ()
        if any(compiled.stochastic):
            compiled.mode(ask.per_row)
        run = Run(self._captured, compiled, self._outputs, asked.memory_bytes, self._couples_rows)
        noise = {output.name: "known" if known_noise(output) else "unknown" for output in self._outputs}
        return Prepared(run, passes, wanted, any(map(needs_samples, wanted)), noise, notes)

    def _fixed_outputs(self, compiled: Compiled) -> Iterator[str]:
        for output, noisy in zip(self._outputs, compiled.stochastic, strict=True):
            if not noisy:
                yield f"output {output.name!r}: no active site reaches it, so its variance is 0"


class _Latest(Generic[_Value]):
    """The values that were used last, by key."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, Lock()
        self._kept: OrderedDict[Hashable, _Value] = OrderedDict()

    def find(self, key: Hashable) -> _Value | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: Hashable, value: _Value) -> list[_Value]:
        """Keep a value and return those that had to go for it."""
        with self._lock:
            self._kept[key] = value
            return [self._kept.popitem(last=False)[1] for _ in range(len(self._kept) - self._most)]

    def drop(self, is_gone: Callable[[_Value], bool]) -> None:
        with self._lock:
            for key in [key for key, value in self._kept.items() if is_gone(value)]:
                del self._kept[key]


def _kind(asked: Asked, variant: str, passes: int) -> str:
    """Return what tells kinds of question apart: all that is said but rows and seed, types included."""
    plan = asked.variant or variant, asked.p, asked.sites or None, asked.precision, asked.estimator
    return repr((plan, asked.passes, passes, asked.scope, asked.tolerance, asked.quantities, asked.memory_bytes))
