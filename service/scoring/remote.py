"""Rows answered by a server, several requests under way; it does not know files, HTTP or torch.

The version that the server has at the start answers every request, whatever it loads meanwhile, and each request tells
the index of its first row: the answers are those of a predictor here.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from anyio.from_thread import start_blocking_portal

from service.client import AsyncClient, Client, InputTensor, Model, Prediction
from service.client.asked import Asked
from service.client.ordered import in_order_through
from service.errors import DeadlineExceeded, RemoteFault, ThinnetError, TooLarge
from service.scoring.block import Block
from service.scoring.engine import Answers, Described, OpenEngine, Parameters
from service.scoring.request_rows import RequestRows
from service.scoring.several import by_input
from service.scoring.table import OnError, Summary, score_table
from service.signature import Input, Output, Task

_BLOCK_BYTES, _BLOCK_ROWS, _LEAST_ROWS = 1 << 23, 8192, 16  # of a block, which is the largest request
_BLOCK_OPERATIONS = 8e10  # some seconds of a slow processor: what a crash may cost
CONCURRENCY = 4
RETRY_S = 120.0  # in which a server may be started again
_DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "FP16": "float16", "FP32": "float32", "FP64": "float64"}


@dataclass(frozen=True)
class Server:
    """A server that scores.

    Attributes:
        url: Its address.
        api_key: What it is shown.
        timeout_s: How long a request may take (seconds); None is the server's own.
        retry_s: How long it may be away, or too busy (seconds).
        concurrency: How many requests are under way at once.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float | None = None
    retry_s: float = RETRY_S
    concurrency: int = CONCURRENCY

    def options(self) -> dict[str, Any]:
        """Return what a client of it is made with."""
        return {"url": self.url, "api_key": self.api_key, "timeout_s": self.timeout_s, "retry_s": self.retry_s}


def score_remotely(
    server: Server | str,
    source: Path,
    target: Path,
    *,
    model: str | None = None,
    on_error: OnError = "fail",
    restart: bool = False,
    threshold: float | None = None,
    **asked: Any,
) -> Summary:
    """Score a table at a server; the answers are those that `score_locally` gives with the same model.

    Args:
        server: The server, or its address, such as `http://localhost:8000`.
        source: The rows, as `score_table` reads them.
        target: Where the result goes.
        model: The model's name; may be left out where the server has one model.
        on_error: As in `score_table`, like the next two.
        restart: Whether to throw away what an earlier call has done.
        threshold: The uncertainty above which rows are counted.
        asked: Any of `Parameters`.

    Raises:
        InvalidInput: With row and column, or what is wrong with the files.
        ThinnetError: What the server refused, in its own words and of its own class.
        ServerUnreachable: It is away for longer than `retry_s`; the same call then goes on where this one stopped.
        RemoteFault: Its answer is not as agreed, or its model is another one than at the start.
    """
    opened = open_server(server, model)
    return score_table(
        source, target, opened, Parameters.of(asked), on_error=on_error, restart=restart, threshold=threshold
    )


def open_server(server: Server | str, model: str | None = None) -> OpenEngine:
    """Return what asks a server as an engine."""
    found = Server(server) if isinstance(server, str) else server
    return lambda parameters, kept: RemoteEngine(found, model, parameters)


@dataclass(frozen=True)
class _Piece:
    """Rows of a block that go in one request."""

    block: Block
    start: int
    stop: int

    @property
    def ends_block(self) -> bool:
        return self.stop == len(self.block)

    def halves(self) -> tuple["_Piece", "_Piece"]:
        middle = (self.start + self.stop) // 2
        return _Piece(self.block, self.start, middle), _Piece(self.block, middle, self.stop)


class RemoteEngine:
    """A server that answers several requests at once.

    Args:
        server: The server.
        model: The model's name; None where it has one.
        parameters: What every row is asked.
    """

    name = "url"

    def __init__(self, server: Server, model: str | None, parameters: Parameters) -> None:
        self._server, self._size = server, RequestRows()
        with Client(**server.options()) as client:
            self._model = client.describe(model, parameters.version)
        self._asked = {**parameters.asked(), "model": self._model.name, "version": self._model.version}
        self.kept: Mapping[str, Any] = {}
        self.notes: Sequence[str] = ()
        self.described = _described(self._model, parameters)
        self.block_rows = _block_rows(self._model, self.described.passes or 1)

    def answers(self, blocks: Iterator[Block]) -> Iterator[Answers]:
        """Yield each block's answers."""
        found: list[Answers] = []
        server = self._server
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(AsyncClient(retries=None, **server.options())) as client,
        ):
            work = partial(self._ask, client)
            for piece, answers in in_order_through(portal, work, self._pieces(blocks), server.concurrency):
                found.append(answers)
                if piece.ends_block:
                    yield _joined(found)
                    found = []
            self._check_model(portal.call(client.describe, self._model.name, self._model.version))

    def _pieces(self, blocks: Iterator[Block]) -> Iterator[_Piece]:
        for block in blocks:
            stop = 0
            while stop < len(block) or not stop:
                start, rows = stop, max(1, len(block)) if self._model.couples_rows else self._size.rows
                stop = start + rows
                yield _Piece(block, start, min(stop, len(block)))

    async def _ask(self, client: AsyncClient, piece: _Piece) -> tuple[_Piece, Answers]:
        """Return a piece's answers; one that is too much for a request is asked in halves."""
        rows, began = piece.stop - piece.start, time.monotonic()
        asked = {**self._asked, "row_offset": piece.block.first_row + piece.start}
        inputs = by_input(self.described.inputs, piece.block.rows[piece.start : piece.stop])
        try:
            prediction = await client.predict(inputs, **cast(Asked, asked))
        except (TooLarge, DeadlineExceeded) as error:
            self._check_divisible(rows, error)
        else:
            self._size.took(rows, time.monotonic() - began)
            self.notes = prediction.notes
            return piece, _checked(prediction, rows)
        self._size.refused(rows)
        return piece, _joined([(await self._ask(client, half))[1] for half in piece.halves()])

    def _check_divisible(self, rows: int, error: ThinnetError) -> None:
        """Raise what refused a request where halves cannot help; a server that says nothing would not answer them."""
        if self._model.couples_rows:
            told = f"{error}; {self._model.name!r} couples its rows, so all {rows} go in one request"
            raise type(error)(f"{told}: raise the server's limit, or score here, without --url") from error
        if rows == 1 or error.status not in (413, 504) or (error.status == 504 and error.request_id is None):
            raise error

    def _check_model(self, now: Model) -> None:
        if now.fingerprint != self._model.fingerprint:
            raise RemoteFault(
                f"version {now.version} of {now.name!r} is another network than when scoring began; start anew"
            )


def _block_rows(model: Model, passes: int) -> int:
    row_bytes = sum(8 * abs(prod(each.shape[1:])) for each in model.inputs)
    fit = _BLOCK_OPERATIONS / max(1.0, model.operations * passes)
    return max(_LEAST_ROWS, int(min(fit, _BLOCK_ROWS, _BLOCK_BYTES // max(1, row_bytes))))


def _described(model: Model, parameters: Parameters) -> Described:
    own = model.defaults
    return Described(
        model.name,
        model.version,
        model.fingerprint,
        tuple(_input(each) for each in model.inputs),
        tuple(Output(each.name, Task(each.task), labels=each.labels, unit=each.unit) for each in model.outputs),
        model.couples_rows,
        own["seed"] if parameters.seed == "default" else parameters.seed,
        own["passes"] if parameters.passes is None else parameters.passes,
    )


def _input(told: InputTensor) -> Input:
    dtype = _DTYPES.get(told.datatype, told.datatype.lower())
    return Input(told.name, dtype, told.shape[1:], told.features, told.units)


def _checked(prediction: Prediction, rows: int) -> Answers:
    for quantities in prediction.outputs.values():
        for name, values in quantities.items():
            if values.ndim == 0 or len(values) != rows:
                raise RemoteFault(f"the server gives {name} of the shape {list(values.shape)} for {rows} rows")
    return prediction.outputs


def _joined(parts: Sequence[Answers]) -> Answers:
    if len(parts) == 1:
        return parts[0]
    return {
        output: {name: np.concatenate([part[output][name] for part in parts]) for name in quantities}
        for output, quantities in parts[0].items()
    }
