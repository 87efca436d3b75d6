"""Run a plan's passes over rows, in blocks of rows and chunks of passes that fit into memory, and gather statistics.

It does not know who asked or what else is running.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from service.ask import Ask
from service.conditional import ConditionalAccumulator
from service.errors import TooLarge
from service.graph.capture import Captured
from service.graph.compiled import Compiled, Draw
from service.graph.footprint import Footprint
from service.graph.nodes import returned, value_of
from service.quantities import Accumulator, needs_samples
from service.signature import Output

CHUNK_BYTES = 16 << 20  # what runs together should stay in the processor's cache
Answers = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Run:
    """One plan over the rows of one ask.

    Attributes:
        captured: The network.
        compiled: Its plan.
        outputs: What its outputs mean.
        wanted: The quantities of each output.
        ask: How many passes, and their noise.
        memory_bytes: A ceiling on what is held at once besides the inputs and the answer.
        couples_rows: Whether all rows must run together.
    """

    captured: Captured
    compiled: Compiled
    outputs: Sequence[Output]
    wanted: Sequence[tuple[str, ...]]
    ask: Ask
    memory_bytes: int
    couples_rows: bool

    def answers(self, tensors: tuple[Tensor, ...]) -> Answers:
        """Return each output's quantities, [B, …] each.

        Raises:
            TooLarge: Samples or quantiles would not fit into memory.
        """
        rows = len(tensors[0])
        self._check_samples([tuple(each.shape) for each in tensors])
        block, chunk = self._portions(self.compiled.footprint(tensors, self.ask.per_row), rows)
        parts = [self._block(tuple(x[at : at + block] for x in tensors), at, chunk) for at in range(0, rows, block)]
        return {
            output.name: {name: torch.cat([part[index][name] for part in parts]) for name in names}
            for index, (output, names) in enumerate(zip(self.outputs, self.wanted, strict=True))
        }

    def _block(self, tensors: tuple[Tensor, ...], first_row: int, chunk: int) -> list[dict[str, Tensor]]:
        """Run all passes of some rows and return each output's quantities."""
        shapes, ask = [tuple(each.shape) for each in tensors], self.ask
        rows = ask.rows(first_row, len(tensors[0]))
        pairs = zip(self.outputs, self.wanted, strict=True)
        accumulators = [self._accumulator(output, names) for output, names in pairs]
        values = self.compiled.trunk(tensors)
        passes = ask.passes if any(self.compiled.stochastic) else 2  # equal ones, as many as a variance needs
        for first in range(0, passes, chunk):
            draw = Draw(ask.seed, first, min(chunk, passes - first), rows)
            for accumulator, raw in zip(accumulators, self._by_output(values, shapes, draw), strict=True):
                accumulator.add(*raw)
        off = self._deterministic(tensors)
        return [accumulator.finish(plain) for accumulator, plain in zip(accumulators, off, strict=True)]

    def _accumulator(self, output: Output, names: tuple[str, ...]) -> Accumulator | ConditionalAccumulator:
        if self.ask.integrates:
            return ConditionalAccumulator(output, names)
        return Accumulator(output, names, self.ask.passes)

    def _by_output(
        self, values: tuple[Any, ...], shapes: Sequence[tuple[int, ...]], draw: Draw
    ) -> list[tuple[Tensor, ...]]:
        """Run passes: of each output [S, B, …] its values, or its conditional means and variances."""
        found, count = self.compiled.run(values, shapes, draw), len(self.outputs)
        return [tuple(found[index::count]) for index in range(count)]

    def _deterministic(self, tensors: tuple[Tensor, ...]) -> Sequence[Tensor | None]:
        """Return the outputs with everything off, where they were asked for."""
        if not any("deterministic" in names for names in self.wanted):
            return [None] * len(self.outputs)
        with torch.inference_mode():
            off: tuple[Tensor, ...] = self.captured.program.graph(*tensors)
        return off

    def _portions(self, footprint: Footprint, rows: int) -> tuple[int, int]:
        """Return how many rows run together, and how many of their passes."""
        suffix, around = footprint.suffix, footprint.around
        row = max(1, footprint.trunk_row, suffix.row + around.row + footprint.kept_row)
        free = self.memory_bytes - suffix.fixed - around.fixed
        block = rows if self.couples_rows else max(1, min(rows, free // row))
        in_cache = CHUNK_BYTES // max(1, suffix.of(block))
        in_memory = (self.memory_bytes - footprint.kept_row * block) // max(1, suffix.of(block) + around.of(block))
        return block, max(1, min(self.ask.passes, in_cache, in_memory))

    def _check_samples(self, shapes: Sequence[tuple[int, ...]]) -> None:
        symbols, nodes = self.captured.symbols, returned(self.captured.program.graph.graph)
        kept = [node for node, names in zip(nodes, self.wanted, strict=True) if needs_samples(names)]
        elements = sum(prod(symbols.lengths(symbols.dims(value_of(node)), shapes)) for node in kept)
        need = 4 * elements * self.ask.passes
        if need > self.memory_bytes:
            raise TooLarge(
                f"samples and quantiles keep every pass: {need} bytes for {shapes[0][0]} rows and {self.ask.passes} "
                f"passes, past the limit of {self.memory_bytes}; ask for fewer rows or passes"
            )
