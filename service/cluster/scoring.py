"""Tables scored by Ray Data: tasks read blocks, actors that hold the model answer them, in order, to this process.

It keeps nothing and writes nothing: parts, resuming and results are `service.scoring`'s, the same for every engine.
Ray runs again what dies with its process; whatever ran twice comes here once.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cluster.joined import is_own, joined
from service.cluster.parcel import packed
from service.cluster.tasks import Answered, Reading, Scorer, items_of
from service.errors import RemoteFault
from service.scoring.block import Block
from service.scoring.engine import Answers, Described, Parameters
from service.scoring.source import Source, open_source
from service.signature import Input
from service.threads import numeric_environment

if TYPE_CHECKING:
    from ray.data import Dataset

_TASK_BLOCKS = 16  # that one task reads, where a table can be read from its middle
_SENT_BYTES = 1 << 20  # what goes to an actor at once: few blocks, so that all actors have some
_READERS = 2
_STORE_MIB = 512


class RayEngine:
    """The model as Ray's actors hold it.

    Args:
        described: The model.
        block_rows: How many rows a block has.
        kept: How each actor computes.
    """

    name = "ray"

    def __init__(self, described: Described, block_rows: int, kept: Mapping[str, Any]) -> None:
        self.described, self.block_rows, self.kept = described, block_rows, kept
        self.notes: Sequence[str] = ()

    def answers(self, blocks: Iterator[Block]) -> Iterator[Answers]:
        """Yield each block's answers, which came with it."""
        for block in blocks:
            if not isinstance(block, Answered) or block.answers is None:
                raise RemoteFault("Ray gave rows without answers; run the same command again")
            self.notes = block.notes
            yield block.answers


class RayTable:
    """A table whose blocks come with answers.

    Args:
        table: The table.
        inputs: What the model takes.
        run: Who answers.
    """

    def __init__(self, table: Source, inputs: Sequence[Input], run: "RayRun") -> None:
        self.place, self.files, self.is_seekable = table.place, table.files, False
        self._table, self._inputs, self._run = table, tuple(inputs), run

    def count(self) -> int | None:
        """Return how many rows it has, about, where that is soon known."""
        return self._table.count()

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield its rows' answers in blocks."""
        yield from self._run.answered(self._readings(block_rows, first_row))

    def _readings(self, block_rows: int, first_row: int) -> list[Reading]:
        rest = Reading(self.place.absolute(), self._inputs, block_rows, first_row)
        rows = self._table.count() if self._table.is_seekable else None
        if rows is None:
            return [rest]
        starts = range(first_row, rows, block_rows * _TASK_BLOCKS)
        return [replace(rest, first_row=start, count=_TASK_BLOCKS) for start in starts]


class RayRun:
    """One run: its engine and its table.

    Args:
        folder: The model's folder, or that of its one model.
        device: Where the actors' networks run.
        threads: Processors, and threads, of each actor.
    """

    def __init__(self, folder: Path, device: str, threads: int) -> None:
        self._folder, self._device, self._threads = folder, device, threads
        self._scorer: tuple[Any, ...] = ()

    def open_engine(self, parameters: Parameters, kept: Mapping[str, Any]) -> RayEngine:
        """Return the engine, as `OpenEngine` has it."""
        from service.repository import Repository
        from service.scoring.local import LocalEngine, only_name

        repository = Repository(self._folder)
        name = only_name(self._folder, repository)
        card, predictor = repository.card(name, parameters.version), repository.predictor(name, parameters.version)
        here = LocalEngine(predictor, parameters, kept, name, card.version)
        engine = RayEngine(here.described, here.block_rows, {**here.kept, "threads": self._threads})
        self._scorer = packed(card.program), self._device, replace(parameters, version=card.version), engine.kept
        return engine

    def open_table(self, place: Path, inputs: Sequence[Input]) -> RayTable:
        """Return a table whose blocks come with answers."""
        return RayTable(open_source(place, inputs), inputs, self)

    def answered(self, readings: Sequence[Reading]) -> Iterator[Answered]:
        """Yield blocks with their answers, in order.

        Raises:
            RemoteFault: Ray cannot go on.
        """
        from ray.exceptions import RayError

        try:
            for batch in self._scored(readings).iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from items_of(batch)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise RemoteFault(f"Ray cannot go on: {reason}; its log tells more, the same command goes on") from error

    def _scored(self, readings: Sequence[Reading]) -> "Dataset":
        import ray
        from ray.data import ActorPoolStrategy

        from service.cluster.blocks import Blocks

        _settle()
        gpus = 0 if self._device == "cpu" else 1
        there = ray.cluster_resources()  # type: ignore[no-untyped-call] # it ships without types
        most = max(1, int(there.get("GPU", 1) if gpus else there.get("CPU", 1) // self._threads))
        found: Dataset = ray.data.read_datasource(
            Blocks(readings),
            num_cpus=0,  # the actors may have them all, and they wait for it
            concurrency=min(_READERS, len(readings)),
            override_num_blocks=len(readings),
        ).map_batches(
            Scorer,
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=most if is_own() else 1),
            fn_constructor_args=self._scorer,
            num_cpus=self._threads,
            num_gpus=gpus,
            runtime_env={"env_vars": {**numeric_environment(), "OMP_NUM_THREADS": str(self._threads)}},
        )
        return found


@contextmanager
def ray_run(folder: Path, device: str = "cpu", threads: int = 1) -> Iterator[RayRun]:
    """Join or start a Ray, and give a run in it.

    Raises:
        NotReady: Ray is not installed, or does not answer.
    """
    with joined(store_mib=_STORE_MIB):
        yield RayRun(folder, _device_there(device), threads)


def _device_there(device: str) -> str:
    """Return a device's name; `auto` is a GPU where the cluster has one, whatever is here."""
    import ray

    there = ray.cluster_resources()  # type: ignore[no-untyped-call] # it ships without types
    return device if device != "auto" else "cuda" if there.get("GPU") else "cpu"


def _settle() -> None:
    """Tell Ray Data what every run needs: order above all."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = _SENT_BYTES
    logging.getLogger("ray.data").setLevel(logging.ERROR)
