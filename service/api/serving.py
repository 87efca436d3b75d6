"""From a checked request to an answer: limits, cost, queue, a caller who may leave; it does not know formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request, Response

from service.api.awaited import Awaited
from service.api.bodies import json_answer
from service.api.computing import compute_on, heed_threads
from service.api.faults import reason_of
from service.api.metrics import Metrics
from service.api.observed import CLIENT_GONE, tell
from service.ask import Asked
from service.costs import Costs
from service.errors import BadRequest, DeadlineExceeded, Draining, Overloaded, TooLarge, TooManyRequests
from service.folder import Card
from service.job import Job, Steps
from service.part import Step
from service.prediction import Prediction
from service.predictor import Predictor
from service.prepared import Prepared
from service.question import Question, together
from service.repository import Repository
from service.scheduler import Scheduler
from service.settings import Settings
from service.wire import PredictRequest

SMALL_BYTES = 1 << 17  # of a body that is read about as fast as a thread is asked, which holds up the loop as long
_SMALL_VALUES = 1 << 14  # the same, of an answer
_STEP_S = 0.05  # how long others wait for a step to end
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Call:
    """A request taken apart.

    Attributes:
        asked: What is asked.
        card: The model's card.
        predictor: The model.
        inputs: Makes the arrays or tensors [B, …] by input.
        write: Makes the response of a prediction.
        is_small: Whether it is read about as fast as a thread is asked.
    """

    asked: PredictRequest
    card: Card
    predictor: Predictor
    inputs: Callable[[], Mapping[str, Any]]
    write: Callable[[Prediction], Response]
    is_small: bool


class Serving:
    """What every route shares: the models, the limits, and the scheduler of what is computed.

    Args:
        settings: The limits.
        repository: The models.
        metrics: What is counted.
        threads: How many compute.
    """

    def __init__(self, settings: Settings, repository: Repository, metrics: Metrics, threads: int) -> None:
        self.settings, self.repository, self.metrics = settings, repository, metrics
        self.workers_dead: Callable[[], list[str]] = list  # what is wrong with the processes beside this one
        self.is_alone: Callable[[], bool] = lambda: False  # whether one request is being answered, if known
        self.costs = Costs()
        self.scheduler: Scheduler[Prediction] = Scheduler(
            _start, settings.max_wait_s, settings.max_jobs, self._learn, partial(compute_on, threads)
        )
        self._awaited: Awaited[Prediction] = Awaited(self.scheduler.attend, lambda: self.is_alone())

    async def find(self, request: PredictRequest) -> tuple[Card, Predictor]:
        """Find what a request names; a version asked for the first time is loaded in a thread.

        Raises:
            NotFound, NotReady: They are not there, or cannot be served.
        """
        name = request.model if request.model is not None else self.repository.sole_name()
        card, is_loaded = self.repository.card(name, request.version), self.repository.is_loaded(name, request.version)
        return card, await aside(is_loaded, self.repository.predictor, name, request.version)

    def check_room(self) -> None:
        """Turn a request away before its body is looked at, where nothing is accepted now.

        Raises:
            Overloaded: Nothing is.
        """
        try:
            self.scheduler.check_room()
        except Overloaded as error:
            self.metrics.rejected(reason_of(type(error).__name__))
            raise

    async def answer(self, request: Request, call: Call) -> Response:
        """Answer a request, or tell its cost.

        Raises:
            BadRequest, TooLarge: It cannot be done, or is past a limit.
            TooManyRequests, Draining: There is no room for it now.
            DeadlineExceeded: Its time is over.
        """
        asked = self._asked(call)
        prepared = call.predictor.found(asked) if call.is_small else None
        question = await aside(prepared is not None, self._question, call, asked, prepared)
        cost_s = self.costs.of(question)
        if call.asked.dry_run:
            return json_answer(self._estimate(call, question, cost_s))
        timeout_s = self._timeout_s(call.asked)
        try:
            request.state.key.spend(cost_s)
            job = self.scheduler.submit(question, cost_s, timeout_s, wake=False)
        except (TooManyRequests, Draining) as error:
            self.metrics.rejected(reason_of(type(error).__name__))
            raise
        prediction = await self._result(request, job, timeout_s)
        request.state.queue_s, request.state.compute_s = job.queue_s, job.compute_s
        if prediction is None:
            return Response(status_code=CLIENT_GONE)
        tell(request, call.card.name, prediction)
        return await aside(prediction.values <= _SMALL_VALUES, call.write, prediction)

    async def _result(self, request: Request, job: Job[Prediction], timeout_s: float) -> Prediction | None:
        try:
            return await self._awaited.result(job, request.receive, timeout_s)
        except (TimeoutError, DeadlineExceeded):  # whoever saw it first
            raise DeadlineExceeded(
                f"no answer within {timeout_s:g} s; ask for fewer rows or passes, or allow more in `timeout_s`"
            ) from None

    def _asked(self, call: Call) -> Asked:
        own = call.asked.arguments()
        if own["tolerance"] is not None and own["passes"] is None:
            own["passes"] = self.settings.max_passes
        return Asked(**own, memory_bytes=self.settings.memory_bytes)

    def _question(self, call: Call, asked: Asked, prepared: Prepared | None) -> Question:
        """Return what is asked, checked against the limits before anything is made of it."""
        inputs = call.inputs()
        rows = max((len(each) for each in inputs.values() if getattr(each, "ndim", 0)), default=0)
        prepared = prepared or call.predictor.prepared(asked)
        self._check_limits(rows, prepared.passes)
        question = call.predictor.question(inputs, asked, prepared)
        step = Step(self.costs.row_passes_in(_STEP_S, question), _STEP_S)
        question.serve(call.card.name, step)
        return question

    def _check_limits(self, rows: int, passes: int) -> None:
        settings = self.settings
        if rows > settings.max_rows:
            raise TooLarge(f"{rows} rows are past the limit of {settings.max_rows} a request; send fewer at a time")
        if passes > settings.max_passes:
            raise BadRequest(f"passes = {passes} is past the limit of {settings.max_passes}; ask for fewer")
        if rows * passes > settings.max_row_passes:
            raise TooLarge(
                f"{rows} rows × {passes} passes are past the limit of {settings.max_row_passes} row-passes a request; "
                "send fewer rows or ask for fewer passes"
            )

    def _timeout_s(self, asked: PredictRequest) -> float:
        most = self.settings.max_timeout_s
        if asked.timeout_s is not None and asked.timeout_s > most:
            raise BadRequest(f"timeout_s = {asked.timeout_s} is past the limit of {most:g} s; allow less")
        return min(self.settings.timeout_s, most) if asked.timeout_s is None else asked.timeout_s

    def _estimate(self, call: Call, question: Question, cost_s: float) -> dict[str, Any]:
        told = {"model": call.card.name, "version": call.card.version, "rows": question.rows}
        return {**told, "passes": question.passes, "cost_s": cost_s, "queue_s": self.scheduler.queued_cost_s}

    def _learn(self, jobs: Sequence[Job[Prediction]], spent_s: float) -> None:
        questions = [job.work for job in jobs]
        self.costs.learn(questions, spent_s)
        model, passes = questions[0].model, max(each.passes for each in questions)
        rows, cost_s = sum(each.rows for each in questions), sum(job.cost_s for job in jobs)
        self.metrics.ran(model, len(jobs), rows, passes, cost_s, spent_s)
        for job in jobs:
            self.metrics.queued(model, job.queue_s)


async def aside(is_quick: bool, work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Do some work at once where it is quick, else in a thread while the event loop goes on."""
    return work(*arguments) if is_quick else await anyio.to_thread.run_sync(_heeding, work, *arguments)


def _heeding(work: Callable[..., _Result], *arguments: Any) -> _Result:
    heed_threads()
    return work(*arguments)


def _start(jobs: Sequence[Job[Prediction]]) -> Steps[Prediction]:
    for job in jobs:
        job.work.wait_for(job.wish)
    return together([job.work for job in jobs])


def serving_of(request: Request) -> Serving:
    """Return what the app was made with."""
    serving: Serving = request.app.state.serving
    return serving
