"""Rows answered by a predictor of this process; it does not know files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from service.errors import ModelNotFound
from service.graph.rates import TYPICAL, Rates, assumed
from service.repository import Repository
from service.scoring.block import Block
from service.scoring.engine import Answers, Described, OpenEngine, Parameters
from service.scoring.several import by_input
from service.scoring.table import Summary, score_table

if TYPE_CHECKING:
    from service.predictor import Predictor

_MOST_ROWS = 4096
_MOST_BYTES = 1 << 26
_BLOCK_S = 1.0
_SHARED = 1e8  # operations of a pass from which on threads gain more than they lose to one another on a busy machine
_OPERATIONS = 2e10  # each second, of a slow processor


class LocalEngine:
    """A predictor that answers a block at a time.

    The last bits of an answer depend on how many passes run together and on how many threads. The first is decided by
    rates that are assumed, not measured, and a run that goes on takes the threads that it began with.

    Args:
        predictor: What answers.
        parameters: What every row is asked.
        kept: What the run was begun with, or nothing.
        model: The model's name.
        version: Its version; None where it comes from no folder.
    """

    name = "local"

    def __init__(
        self,
        predictor: "Predictor",
        parameters: Parameters,
        kept: Mapping[str, Any],
        model: str = "model",
        version: int | None = None,
    ) -> None:
        self._rates = _rates(kept)
        self._predictor, self._asked = predictor, parameters.asked()
        self.notes: Sequence[str] = ()
        own = {name: self._asked[name] for name in ("passes", "variant", "p", "sites", "tolerance")}
        self.described = Described(
            model,
            version,
            predictor.fingerprint(),
            predictor.inputs,
            predictor.outputs,
            predictor.couples_rows,
            predictor.seed if parameters.seed == "default" else parameters.seed,
            predictor.passes_of(**own),
        )
        self.block_rows = _block_rows(predictor, self.described.passes or 1)
        is_small = predictor.operations() * self.block_rows < _SHARED
        self._threads = kept["threads"] if kept else 1 if is_small else torch.get_num_threads()
        self.kept: Mapping[str, Any] = {"rates": asdict(self._rates), "threads": self._threads}

    def answers(self, blocks: Iterator[Block]) -> Iterator[Answers]:
        """Yield each block's answers."""
        inputs = self.described.inputs
        for block in blocks:
            with assumed(self._rates), _threads(self._threads):
                rows = by_input(inputs, block.rows)
                prediction = self._predictor.predict(rows, row_offset=block.first_row, **self._asked)
            self.notes = prediction.notes
            yield {
                output: {quantity: values.numpy() for quantity, values in found.items()}
                for output, found in prediction.outputs.items()
            }


def _block_rows(predictor: "Predictor", passes: int) -> int:
    """Return how many rows take about a second and little memory: what a crash may cost, how often progress shows."""
    in_time = _BLOCK_S * _OPERATIONS / max(1.0, predictor.operations() * passes)
    in_memory = _MOST_BYTES / (8 * max(1, sum(abs(prod(each.shape)) for each in predictor.inputs)))
    fit = min(_MOST_ROWS, int(max(1.0, min(in_time, in_memory))))
    return 1 << (fit.bit_length() - 1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute on a number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rates(kept: Mapping[str, Any]) -> Rates:
    return Rates(**kept["rates"]) if kept else TYPICAL


def open_predictor(predictor: "Predictor") -> OpenEngine:
    """Return what opens an engine of a predictor that is at hand."""
    return lambda parameters, kept: LocalEngine(predictor, parameters, kept)


def open_folder(folder: Path, device: str = "cpu") -> OpenEngine:
    """Return what loads a model folder, or the only one of a folder of them, as an engine.

    Raises, once it is opened:
        InvalidModelFolder, ModelNotFound, VersionNotFound, NotReady: As `Repository` does.
    """

    def open_engine(parameters: Parameters, kept: Mapping[str, Any]) -> LocalEngine:
        with assumed(_rates(kept)):
            repository = Repository(folder, device)
            name = only_name(folder, repository)
            predictor = repository.predictor(name, parameters.version)
        return LocalEngine(predictor, parameters, kept, name, repository.card(name, parameters.version).version)

    return open_engine


def only_name(folder: Path, repository: Repository) -> str:
    """Return the name of a folder's only model.

    Raises:
        ModelNotFound: There are several; with how to name one.
    """
    names = sorted({*repository.names(), *repository.faults})
    if len(names) > 1:
        told = f"{folder} holds several models: {', '.join(names)}"
        raise ModelNotFound(f"{told}; name the folder of one, such as {folder / names[0]}")
    return names[0]


def score_locally(predictor: "Predictor", source: Path, target: Path, **asked: Any) -> Summary:
    """Score a table with a predictor at hand; each row's answer is what one `predict` call with all rows would give.

    A network that couples its rows gets all of them at once.

    Args:
        predictor: What answers.
        source: The rows, as `score_table` reads them.
        target: Where the result goes.
        asked: Any of `Parameters`.

    Raises:
        InvalidInput: With row and column, or what is wrong with the files.
        BadRequest: What is asked for does not fit the model.
    """
    return score_table(source, target, open_predictor(predictor), Parameters.of(asked))
