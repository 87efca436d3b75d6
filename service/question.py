"""A caller's checked request of a plan, and several of them answered by one run; it does not know how it was sent."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from service.job import Pending, Result, Steps
from service.part import Part, Step
from service.prediction import Prediction, unfinite_rows
from service.run import Answers, Run
from service.tolerance import unsettled_rows


@dataclass(eq=False)
class Question:
    """A request of a predictor, everything about it checked.

    Attributes:
        run: Its plan.
        part: Its rows, passes and quantities.
        noise: For each output, whether the observation noise is `known` or `unknown`.
        notes: What the caller should know of how it is served.
        model: Whose it is, where several models are asked.
        step: How much of it runs before others get their turn; None where nobody else waits.
        most_rows: How many rows like its own can run together, as `serve` found out; 0 where nobody has.
        kind: What its cost for each row and pass depends on.
    """

    run: Run
    part: Part
    noise: Mapping[str, str]
    notes: tuple[str, ...] = ()
    model: str = ""
    step: Step | None = None
    most_rows: int = 0
    kind: Hashable = field(init=False)

    def __post_init__(self) -> None:
        lengths = tuple((x.shape[1:], x.dtype) for x in self.part.tensors)
        self.kind = id(self.run.compiled), lengths, self.part.ask.per_row

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.part.rows

    @property
    def passes(self) -> int:
        """How many passes it runs, or may run with a tolerance."""
        return self.part.ask.passes

    @property
    def tolerance(self) -> float | None:
        """The relative standard error of a row's variances at which its passes end."""
        return self.part.ask.tolerance

    @property
    def key(self) -> Hashable | None:
        """What questions have in common that one run can answer; None where it is answered alone."""
        ask = self.part.ask
        return None if self.run.couples_rows else (self.kind, ask.seed, ask.estimator)

    def fits(self, others: Sequence["Question"]) -> bool:
        """Tell whether it can run together with others of its key."""
        most = self.most_rows or self.run.rows_together(self.part, self.step)
        return sum(each.rows for each in others) + self.rows <= most

    def serve(self, model: str, step: Step) -> None:
        """Make it one of a model's that lets others have their turn after each step, what it needs measured."""
        self.model, self.step = model, step
        self.most_rows = self.run.rows_together(self.part, step)

    def wait_for(self, is_wanted: Callable[[], bool]) -> None:
        """Make it one that is given up once nobody waits for it."""
        self.part.is_wanted = is_wanted

    def prediction(self, answers: Answers) -> Prediction:
        """Return the answer made of its outputs' quantities."""
        ask, used = self.part.ask, self.part.ask.passes
        if ask.tolerance is not None:
            used = max(int(found["passes_used"].max()) for found in answers.values())
        notes = (*self.notes, *self._unsettled(answers), *unfinite_rows(answers))
        return Prediction(used, ask.seed, ask.scope, answers, self.noise, ask.estimator, notes)

    def _unsettled(self, answers: Answers) -> tuple[str, ...]:
        """Return a note for each output with rows that did not reach the tolerance, where there is one."""
        if self.tolerance is None:
            return ()
        pairs = zip(self.run.outputs, self.run.reached_by_noise, strict=True)
        noisy = {output.name: answers[output.name] for output, reached in pairs if reached}
        return unsettled_rows(noisy, self.tolerance)


def together(questions: Sequence[Question]) -> Steps[Prediction]:
    """Answer questions of one key by one run, a chunk of passes a step, each once it has had its passes."""
    for found in questions[0].run.steps([each.part for each in questions], questions[0].step):
        if isinstance(found, Pending):
            yield found
        else:
            yield {place: questions[place].prediction(answers) for place, answers in found.items()}


def finished(steps: Steps[Result]) -> dict[int, Result]:
    """Take all steps and return what they lead to, by its place."""
    return {place: each for found in steps if not isinstance(found, Pending) for place, each in found.items()}
