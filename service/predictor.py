"""From a network and a plan to a prediction: the trunk once, passes in chunks, their statistics.

It does not know files' formats, the wire, or who else is being served.
"""

import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from service.datasheet import MAX_PASSES, MIN_PASSES, Datasheet
from service.errors import BadRequest, InvalidInput, InvalidPlan, ModelFault, NoActiveSite, TooLarge
from service.folder import read_card, write_folder

from service.graph.capture import Captured, Example, capture, from_program
from service.graph.compiled import Compiled, Draw, couples_rows
from service.graph.layout import note_layouts
from service.graph.program import plain_outputs
from service.graph.sites import Site
from service.plan import Override, Plan, fitting, make_plan
from service.prediction import Prediction
from service.quantities import Accumulator, check, known_noise, needs_samples
from service.rows import Given, read_rows
from service.signature import Activation, Input, Output, Task

CHUNK_BYTES = 16 << 20  # what runs together should stay in the processor's cache
MEMORY_BYTES = 1 << 30  # what one request may hold at once
_PLANS_KEPT = 32
Seed = int | None | Literal["default"]


class Predictor:
    """A network that answers with its passes' mean and variance.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        sites: Where it can be random.
        lost: Modules whose randomness could not be captured.
        passes: The number of passes where a call names none.
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
        note_layouts(captured.program.graph, captured.example)
        self._captured = captured
        self._compiled: OrderedDict[tuple[Any, ...], Compiled] = OrderedDict()
        self._lock = Lock()
        self.inputs = tuple(inputs) if inputs is not None else _inputs_of(captured)
        self.outputs = tuple(outputs) if outputs is not None else _outputs_of(captured)
        self.sites: tuple[Site, ...] = (
            *(located.site for located in captured.activation_sites()),
            *(weight.site for weight in captured.weights),
        )
        self.lost = captured.lost
        self.passes, self.seed, self.variant = passes, seed, variant
        self.couples_rows = couples_rows(captured)
        self.device = captured.example[0].device
        _check_signature(self)

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
        return cls(capture(module, example, torch.device(device)), inputs, outputs)

    @classmethod
    def load(
        cls, folder: Path | str, version: int | str | None = None, device: torch.device | str = "cpu"
    ) -> "Predictor":
        """Load a version of a model folder; None takes the highest.

        Raises:
            VersionNotFound, InvalidModelFolder, UnsafeArchive: What is on disk cannot be served.
        """
        card = read_card(Path(folder), version)
        from service.graph.archive import load_program

        exported = load_program(card.program, sha256=card.sha256)
        if torch.device(device).type != "cpu":
            exported = move_to_device_pass(exported, torch.device(device))
        return cls(
            from_program(exported), card.inputs, card.outputs, passes=card.passes, seed=card.seed, variant=card.variant
        )

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
        quantities: Sequence[str] | None = None,
        memory_bytes: int = MEMORY_BYTES,
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
            quantities: What to compute besides the task's defaults.
            memory_bytes: A ceiling on what is held at once.

        Raises:
            InvalidInput: The inputs do not fit.
            InvalidPlan: The variant, rate or site does not fit; NoActiveSite if nothing would be random.
            InvalidQuantity: A quantity is unknown or not this output's.
            TooLarge: Samples or quantiles would not fit into memory.
        """
        tensors = read_rows(self.inputs, inputs, self.device)
        passes = _checked_passes(self.passes if passes is None else passes)
        wanted = [check(output, _own(output, quantities, self.outputs)) for output in self.outputs]
        compiled = self._compile(make_plan(self.sites, variant or self.variant, p, sites))
        chosen = self._checked_seed(seed)
        self._check_scope(scope, row_offset)
        self._check_samples(wanted, len(tensors[0]), passes, memory_bytes)
        chunk, block = self._chunking(compiled, tensors, passes, memory_bytes)
        parts = [
            self._run_block(compiled, tuple(each[start : start + block] for each in tensors), wanted, passes, chunk,
                            chosen, None if scope == "pass" else row_offset + start)  # fmt: skip
            for start in range(0, len(tensors[0]), block)
        ]
        answers = {
            output.name: {name: torch.cat([part[index][name] for part in parts]) for name in parts[0][index]}
            for index, output in enumerate(self.outputs)
        }
        noise = {output.name: "known" if known_noise(output) else "unknown" for output in self.outputs}
        return Prediction(passes, chosen, scope, answers, noise, compiled.notes + self._fixed_outputs(compiled))

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
            task: The task of a single output, with softmax or sigmoid where it needs one; None keeps the outputs as they are.
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
            outputs = (_as_task(outputs[0], Task(task or outputs[0].task), tuple(labels)),)
        sheet = Datasheet(
            self.inputs, outputs, description, self.passes, self.seed, self.variant, dict(score or {})
        )
        return write_folder(Path(folder), plain_outputs(self._captured.exported, self._captured.program), sheet, version)

    def mode(self, scope: str = "pass", **plan: Any) -> str:
        """Return how the passes of a plan run together: folded, vmapped or looped."""
        return self._compile(make_plan(self.sites, **{"variant": self.variant, **plan})).mode(scope == "row")

    def _compile(self, plan: Plan) -> Compiled:
        key = tuple(sorted((name, variant.name, *variant.parameters().items()) for name, variant in plan.items()))
        with self._lock:
            if key not in self._compiled:
                compiled = Compiled(self._captured, plan)
                if not any(compiled.stochastic):
                    raise NoActiveSite(f"the sites {', '.join(plan)} do not reach any output; activate others")
                self._compiled[key] = compiled
            self._compiled.move_to_end(key)
            while len(self._compiled) > _PLANS_KEPT:
                self._compiled.popitem(last=False)
            return self._compiled[key]

    def _run_block(
        self,
        compiled: Compiled,
        tensors: tuple[Tensor, ...],
        wanted: Sequence[tuple[str, ...]],
        passes: int,
        chunk: int,
        seed: int,
        first_row: int | None,
    ) -> list[dict[str, Tensor]]:
        """Run all passes of some rows and return each output's quantities."""
        shapes = [tuple(each.shape) for each in tensors]
        rows = None if first_row is None else range(first_row, first_row + len(tensors[0]))
        accumulators = [Accumulator(output, names, passes) for output, names in zip(self.outputs, wanted, strict=True)]
        values = compiled.trunk(tensors)
        for first in range(0, passes, chunk):
            draw = Draw(seed, first, min(chunk, passes - first), rows)
            for accumulator, raw in zip(accumulators, compiled.run(values, shapes, draw), strict=True):
                accumulator.add(raw)
        off: Sequence[Tensor | None] = [None] * len(self.outputs)
        if any("deterministic" in names for names in wanted):
            with torch.no_grad():
                off = self._captured.program.graph(*tensors)
        return [accumulator.finish(plain) for accumulator, plain in zip(accumulators, off, strict=True)]

    def _chunking(
        self, compiled: Compiled, tensors: tuple[Tensor, ...], passes: int, memory_bytes: int
    ) -> tuple[int, int]:
        """Return how many passes run together, and how many rows."""
        ratio = max(1.0, sum(x[0].numel() for x in tensors) / sum(x[0].numel() for x in self._captured.example))
        row_bytes = max(1, int(compiled.bytes_per_row * ratio))
        rows = len(tensors[0])
        block = rows if self.couples_rows else max(1, min(rows, memory_bytes // row_bytes))
        return max(1, min(passes, CHUNK_BYTES // (row_bytes * block))), block

    def _checked_seed(self, seed: Seed) -> int:
        if seed is None:
            return secrets.randbits(53)  # exact in any JSON reader
        if seed == "default":
            return self.seed
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise BadRequest(f"seed = {seed!r} is not a whole number from 0 to 2**64 - 1, or null for a fresh one")
        return seed

    def _check_scope(self, scope: str, row_offset: int) -> None:
        if scope not in ("pass", "row"):
            raise BadRequest(f"scope = {scope!r} is neither 'pass' nor 'row'")
        if not isinstance(row_offset, int) or isinstance(row_offset, bool) or not 0 <= row_offset < 1 << 62:
            raise BadRequest(f"row_offset = {row_offset!r} is not a whole number from 0")
        if scope == "row" and self.couples_rows:
            raise BadRequest("scope 'row' gives every row networks of its own, but this network couples its rows; use 'pass'")

    def _check_samples(self, wanted: Sequence[tuple[str, ...]], rows: int, passes: int, memory_bytes: int) -> None:
        sizes = [self._output_elements(index) for index, names in enumerate(wanted) if needs_samples(names)]
        need = sum(sizes) * rows * passes * 4
        if need > memory_bytes:
            raise TooLarge(
                f"samples and quantiles keep every pass: {need} bytes for {rows} rows and {passes} passes, past the limit of "
                f"{memory_bytes}; ask for fewer rows or passes"
            )

    def _output_elements(self, index: int) -> int:
        nodes: Any = self._captured.program.graph.graph.output_node().args[0]
        elements = 1
        for size in nodes[index].meta["val"].shape[1:]:
            elements *= int(size)
        return elements

    def _fixed_outputs(self, compiled: Compiled) -> tuple[str, ...]:
        return tuple(
            f"output {output.name!r}: no active site reaches it, so its variance is 0"
            for output, noisy in zip(self.outputs, compiled.stochastic, strict=True)
            if not noisy
        )


def _inputs_of(captured: Captured) -> tuple[Input, ...]:
    inputs = []
    for node, name in zip(captured.program.placeholders(), captured.program.inputs, strict=True):
        value = node.meta["val"]
        shape = tuple(-1 if isinstance(size, torch.SymInt) else int(size) for size in value.shape[1:])
        inputs.append(Input(name, str(value.dtype).removeprefix("torch."), shape))
    return tuple(inputs)


def _outputs_of(captured: Captured) -> tuple[Output, ...]:
    outputs = []
    nodes: Any = captured.program.graph.graph.output_node().args[0]
    for node, name in zip(nodes, captured.program.outputs, strict=True):
        shape = tuple(-1 if isinstance(size, torch.SymInt) else int(size) for size in node.meta["val"].shape[1:])
        outputs.append(Output(name, shape=shape))
    return tuple(outputs)


def _check_signature(predictor: Predictor) -> None:
    captured = predictor._captured
    for what, said, found in (
        ("inputs", predictor.inputs, captured.program.inputs),
        ("outputs", predictor.outputs, captured.program.outputs),
    ):
        if len(said) != len(found):
            raise ModelFault(f"{len(said)} {what} are described, the network has {len(found)}: {', '.join(found)}")


def _as_task(output: Output, task: Task, labels: tuple[str, ...]) -> Output:
    activations = {Task.CLASSIFICATION: Activation.SOFTMAX, Task.MULTILABEL: Activation.SIGMOID}
    activation = output.activation if output.activation is not Activation.NONE else activations.get(task, Activation.NONE)
    return replace(output, task=task, activation=activation, labels=labels or output.labels)


def _checked_passes(passes: int) -> int:
    if isinstance(passes, bool) or not isinstance(passes, int) or not MIN_PASSES <= passes <= MAX_PASSES:
        raise BadRequest(f"passes = {passes!r} is not a whole number from {MIN_PASSES} to {MAX_PASSES}")
    return passes


def _own(output: Output, quantities: Sequence[str] | None, outputs: Sequence[Output]) -> list[str]:
    """Return the quantities asked of an output: `name`, or `output.name` where there are several outputs."""
    names = {each.name for each in outputs}
    own = []
    for quantity in quantities or ():
        owner, _, rest = quantity.partition(".")
        addressed = len(outputs) > 1 and owner in names and rest
        if not addressed:
            own.append(quantity)
        elif owner == output.name:
            own.append(rest)
    return own


