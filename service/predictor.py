"""From a network and a plan to a prediction: the trunk once, passes in chunks, their statistics.

It does not know files' formats, the wire, or who else is being served.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from service.ask import MEMORY_BYTES, SAMPLED, Asked, Seed
from service.datasheet import Datasheet
from service.errors import BadRequest, InvalidInput, InvalidPlan
from service.folder import read_card, write_folder
from service.graph.archive import load_program
from service.graph.candidates import drop_entangled
from service.graph.capture import Captured, Example, capture, from_program
from service.graph.compiled import Compiled
from service.graph.coupling import couples_rows
from service.graph.footprint import memory_named
from service.graph.identity import fingerprint
from service.graph.layout import note_layouts, with_rows
from service.graph.operations import operations_per_row
from service.graph.precision import FLOAT32, ruled
from service.graph.program import drop_traces, plain_outputs
from service.graph.signature import described_inputs, described_outputs
from service.graph.tables import table_lengths
from service.part import Part
from service.plan import Override, Plan, choose_passes, fitting, fixed_passes, make_plan
from service.prediction import Prediction
from service.prepared import Preparation, Prepared
from service.question import Question, finished, together
from service.rows import Given, read_rows
from service.signature import Input, Output, Task


class Predictor:
    """A network that answers with its passes' mean and variance.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        sites: Where it can be random.
        lost: Modules whose randomness could not be captured.
        seed: The seed where a call names none.
        variant: The variant where a call names none.
        couples_rows: Whether a row's answer depends on the other rows of its batch.
        device: Where it runs.
    """

    def __init__(
        self,
        captured: Captured,
        inputs: Sequence[Input] | None = None,
        outputs: Sequence[Output] | None = None,
        *,
        passes: int = 100,
        seed: int = 0,
        variant: str = "trained",
    ) -> None:
        self._captured, self.device = captured, captured.example[0].device
        with ruled(FLOAT32, self.device):
            note_layouts(captured.program.graph, captured.example)
            self.couples_rows = couples_rows(captured)
        self.inputs = described_inputs(captured, inputs)
        self.outputs = described_outputs(captured, outputs)
        self._tables = table_lengths(captured.program)
        drop_entangled(captured.program.graph.graph)
        self.sites, self.lost = captured.sites(), captured.lost
        self.seed, self.variant = seed, variant
        self._own_passes = passes
        self._preparation = Preparation(captured, self.sites, self.outputs, self.couples_rows)

    @classmethod
    def capture(
        cls,
        module: nn.Module,
        example: Example,
        *,
        inputs: Sequence[Input] | None = None,
        outputs: Sequence[Output] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Predictor":
        """Capture a trained module; it is copied, never changed.

        Args:
            module: Any `nn.Module`, in eval or training mode.
            example: A batch-first tensor [B, …], a tuple of them, or keyword tensors by name.
            inputs: What the inputs mean; names and shapes from the example where None.
            outputs: What the outputs mean, in the network's order; plain regression where None.
            device: Where to run.

        Raises:
            CaptureFailed: It cannot be read as a graph.
            UnclaimedRandomness: Something random in it is no known site.
            ImpureGraph: It changes its own state.
        """
        with ruled(FLOAT32, torch.device(device)):
            captured = capture(module, example, torch.device(device))
        return cls(captured, inputs, outputs)

    @classmethod
    def load(
        cls, folder: Path | str, version: int | str | None = None, device: torch.device | str = "cpu"
    ) -> "Predictor":
        """Load a version of a model folder; None takes the highest.

        Raises:
            VersionNotFound, InvalidModelFolder, UnsafeArchive: What is on disk cannot be served.
        """
        card = read_card(Path(folder), version)
        exported = load_program(card.program, sha256=card.sha256)
        if torch.device(device).type != "cpu":
            exported = move_to_device_pass(exported, torch.device(device))
        with ruled(FLOAT32, torch.device(device)):
            captured = replace(from_program(exported), lost=card.lost)
        return cls(captured, card.inputs, card.outputs, passes=card.passes, seed=card.seed, variant=card.variant)

    def predict(
        self,
        inputs: Given,
        *,
        passes: int | None = None,
        variant: str | None = None,
        p: float | None = None,
        sites: Mapping[str, Override] | None = None,
        seed: Seed = "default",
        scope: str = "pass",
        row_offset: int = 0,
        estimator: str = SAMPLED,
        tolerance: float | None = None,
        quantities: Sequence[str] | None = None,
        memory_bytes: int = MEMORY_BYTES,
        precision: str = FLOAT32,
    ) -> Prediction:
        """Return the mean and variance of N stochastic passes, and the quantities of each output's task.

        Args:
            inputs: A tensor [B, …], a tuple in the inputs' order, or a mapping by name, in the user's units.
            passes: N, 2 to 10 000; None takes the model's own.
            variant: `trained` or a variant for the whole plan; None takes the model's own.
            p: A drop rate for the whole plan; None keeps the trained rates.
            sites: Overrides by site: a variant's name, a rate, a mapping, or `off`.
            seed: The noise's seed; None draws a fresh one, which the answer tells.
            scope: `pass`: one pass is one network for all rows; `row`: every row has networks of its own.
            row_offset: Index of the first row in a larger table, for row scope.
            estimator: `sampled`: passes sample every site; `integrated`: each output's last site, `bernoulli`,
                `gaussian` or `dropconnect` right before a linear output, is integrated exactly and the others are
                sampled, so that mean and variance are as unbiased and vary less from seed to seed.
            tolerance: A row's passes end at 64, 128, 256, … once the relative standard error of all its variances is
                below this, and `passes` is the most it may take, 10 000 for None; `variance_error` and `passes_used`
                tell what was reached. None runs all passes for all rows.
            quantities: What to compute besides the task's defaults.
            memory_bytes: A ceiling on what is held at once besides the inputs and the answer.
            precision: What products run in: `float32`, or `bfloat16` or on a GPU `tf32`, which are faster and coarser.

        Raises:
            InvalidInput: The inputs do not fit.
            InvalidPlan: The variant, rate or site does not fit; NoActiveSite if nothing would be random.
            InvalidQuantity: A quantity is unknown or not this output's.
            TooLarge: Samples or quantiles would not fit into memory.
            OutOfMemory: The device has no room for one pass of a row, or of all rows where the network couples them.
        """
        asked = Asked(
            passes,
            variant,
            p,
            sites,
            seed,
            scope,
            row_offset,
            estimator,
            tolerance,
            quantities,
            precision,
            memory_bytes,
        )
        question = self.question(inputs, asked)
        return finished(together([question]))[0]

    def question(self, inputs: Given, asked: Asked, prepared: Prepared | None = None) -> Question:
        """Return what `predict` would answer, checked and ready to run, alone or together with others.

        Args:
            inputs: As in `predict`.
            asked: The rest of what `predict` is given.
            prepared: What `prepared` returned for it; found again where None.

        Raises:
            BadRequest, InvalidPlan, InvalidQuantity, TooLarge, OutOfMemory: As `predict` does.
        """
        with memory_named(lambda: "the rows, or for trying their plan"):
            prepared = prepared or self.prepared(asked)
            tensors = read_rows(self.inputs, inputs, self.device, self._tables)
        part = Part(tensors, asked.of_passes(prepared.passes, self.seed), prepared.wanted)
        if prepared.keeps_passes:
            prepared.run.check_samples(part)
        return Question(prepared.run, part, prepared.noise, prepared.notes)

    def prepared(self, asked: Asked) -> Prepared:
        """Return what a question needs besides its rows and seed, made where it was not asked for lately.

        Raises:
            BadRequest, InvalidPlan, InvalidQuantity: As `predict` does.
        """
        return self._preparation.of(asked, self.variant, self._own_passes)

    def found(self, asked: Asked) -> Prepared | None:
        """Return what `prepared` does where it is there already, so that the question can be made at once."""
        return self._preparation.find(asked, self.variant, self._own_passes)

    def warm_up(self) -> None:
        """Run passes of the default plan, where it has any, so that the first call finds all prepared."""
        with suppress(BadRequest):  # as trained it has nothing active, or the example is no input: a call will say so
            fixed = fixed_passes(make_plan(self.sites, self.variant, None, None))
            self.predict(tuple(with_rows(each, 1) for each in self._captured.example), passes=fixed or 2)

    @property
    def passes(self) -> int:
        """The number of passes where a call names nothing: of an ensemble of fixed masks, their number."""
        try:
            return self.passes_of()
        except InvalidPlan:
            return self._own_passes

    @passes.setter
    def passes(self, passes: int) -> None:
        self._own_passes = passes

    def passes_of(
        self,
        passes: int | None = None,
        variant: str | None = None,
        p: float | None = None,
        sites: Mapping[str, Override] | None = None,
        tolerance: float | None = None,
    ) -> int:
        """Return how many passes a call runs: those it names, its plan's fixed number, or the model's own.

        With a tolerance, how many it may run.

        Raises:
            BadRequest: It names another number than its plan's fixed one.
            InvalidPlan: The variant, rate or site does not fit; NoActiveSite if nothing would be random.
        """
        plan = make_plan(self.sites, variant or self.variant, p, sites)
        return choose_passes(plan, passes, self._own_passes, tolerance)

    def fingerprint(self) -> str:
        """Return a hash that changes where answers would: of the network, what its tensors mean, and its defaults."""
        return fingerprint(self._captured.program, self.inputs, self.outputs, self.seed, self.variant, self._own_passes)

    def operations(self) -> float:
        """Return the operations of a pass, for each row, as far as they are matrix products or convolutions."""
        return operations_per_row(self._captured.program.graph, self._captured.example)

    def fitting(self, site: str) -> tuple[str, ...]:
        """Return the names of the variants that fit a site.

        Raises:
            InvalidPlan: There is no such site.
        """
        for each in self.sites:
            if each.name == site:
                return fitting(each)
        raise InvalidPlan(f"there is no site {site!r}; the sites are {', '.join(each.name for each in self.sites)}")

    def save(
        self,
        folder: Path | str,
        *,
        description: str = "",
        task: Task | str | None = None,
        labels: Sequence[str] = (),
        score: Mapping[str, float] | None = None,
        version: int | None = None,
    ) -> Path:
        """Write a model folder that `thinnet serve` serves, or a new version of it.

        Args:
            folder: The model's folder; its name is the model's.
            description: What it is, for people.
            task: The task of a single output, with softmax or sigmoid where it needs one; None keeps the outputs.
            labels: The single output's class or label names.
            score: Held-out figures by name.
            version: The version's number; None takes the next.

        Raises:
            InvalidModelFolder: The version is there already, or something said of the model is not valid.
        """
        outputs = self.outputs
        if task is not None or labels:
            if len(outputs) != 1:
                raise InvalidInput("task and labels describe a single output; give `outputs` to Predictor.capture")
            outputs = (outputs[0].with_task(_task(task or outputs[0].task), tuple(labels)),)
        own = self.passes, self.seed, self.variant, dict(score or {}), self.lost
        sheet = Datasheet(self.inputs, outputs, description, *own)
        program = plain_outputs(self._captured.exported, self._captured.program)
        drop_traces(program)
        return write_folder(Path(folder), program, sheet, version)

    def compile(self, plan: Plan, precision: str = FLOAT32, integrated: bool = False) -> Compiled:
        """Return a plan, ready to run.

        Raises:
            NoActiveSite: None of its sites reaches an output.
        """
        return self._preparation.compile(plan, precision, integrated)

    def mode(self, scope: str = "pass", **plan: Any) -> str:
        """Return how the passes of a plan run together: folded, vmapped or looped."""
        return self.compile(make_plan(self.sites, **{"variant": self.variant, **plan})).mode(scope == "row")


def _task(task: str) -> Task:
    if task not in tuple(Task):
        raise InvalidInput(f"task = {task!r} is not known; give one of {', '.join(Task)}")
    return Task(task)
