"""Score a table with a server's `POST /predict`, over the standard library's HTTP; it does not know files or torch.

The version that the server has at the start answers every block.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from service.errors import BadRequest, ModelNotFound, NotFound, NotReady, RemoteFault, ThinnetError, TooLarge
from service.scoring.block import Block
from service.scoring.engine import Answers, Described, OpenEngine, Parameters
from service.scoring.table import Summary, score_table
from service.signature import Input, Output

TIMEOUT_S = 60.0
BLOCK_ROWS = 256
_FAULTS: Mapping[int, type[ThinnetError]] = {400: BadRequest, 404: NotFound, 413: TooLarge, 503: NotReady}
_NO_QUANTITIES = {"model", "version", "passes", "seed", "scope", "estimator", "noise", "notes"}
_NOT_FLOATS = ("label", "passes_used")
_DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "FP16": "float16", "FP32": "float32", "FP64": "float64"}


def score_remotely(
    url: str, source: Path, target: Path, *, model: str | None = None, timeout_s: float = TIMEOUT_S, **asked: Any
) -> Summary:
    """Score a table at a server; the answers are those that `score_locally` gives with the same model.

    Args:
        url: The server's address, such as `http://localhost:8000`.
        source: The rows, as `score_table` reads them.
        target: Where the result goes.
        model: The model's name; may be left out where the server has one model.
        timeout_s: How long a block may take.
        asked: Any of `Parameters`.

    Raises:
        InvalidInput: With row and column, or what is wrong with the files.
        BadRequest, NotFound, TooLarge, NotReady: What the server refused.
        RemoteFault: It cannot be reached, or its answer is not as agreed.
    """
    return score_table(source, target, open_server(url, model, timeout_s), Parameters(**asked))


def open_server(url: str, model: str | None = None, timeout_s: float = TIMEOUT_S) -> OpenEngine:
    """Return what asks a server as an engine."""

    def open_engine(parameters: Parameters, kept: Mapping[str, Any]) -> "RemoteEngine":
        return RemoteEngine(_Server(url, timeout_s), model, parameters)

    return open_engine


class RemoteEngine:
    """A server that answers a block at a time."""

    name = "url"
    notes: Sequence[str] = ()
    block_rows = BLOCK_ROWS

    def __init__(self, server: "_Server", model: str | None, parameters: Parameters) -> None:
        name = model or server.sole_model()
        told, version = server.describe(name, parameters.version), parameters.version
        asked = {key: value for key, value in parameters.asked().items() if value is not None and key != "seed"}
        self._server, self._told = server, told
        self._body = asked | {"model": name, "version": version if version is not None else told.version}
        if parameters.seed != "default":
            self._body["seed"] = parameters.seed
        self.kept: Mapping[str, Any] = {}
        fingerprint = repr((told.inputs, told.outputs))
        self.described = Described(
            name, self._body["version"], fingerprint, told.inputs, told.outputs, told.couples_rows
        )

    def answers(self, blocks: Iterator[Block]) -> Iterator[Answers]:
        """Yield each block's answers."""
        score = _scorer(self._server, self._told, self._body)
        for block in blocks:
            yield score(block.rows, block.first_row)


class _Server:
    """A server's routes."""

    def __init__(self, url: str, timeout_s: float) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise BadRequest(f"{url!r} is not a server's address; write http://host:port")
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s

    def sole_model(self) -> str:
        """Return the only model's name."""
        names = self._ask("/v2/models").get("models")
        if not isinstance(names, list) or len(names) != 1:
            raise ModelNotFound(f"{self._url} does not serve exactly one model; name one of {names}")
        return str(names[0])

    def describe(self, model: str, version: int | str | None) -> "_Told":
        """Return what a model takes and gives."""
        chosen = "" if version is None else f"/versions/{quote(str(version), safe='')}"
        path = f"/v2/models/{quote(model, safe='')}{chosen}"
        told = self._ask(path)
        try:
            return _Told(told)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.fail(path, f"describes no model ({error!r})", error)

    def predict(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        return self._ask("/predict", json.dumps(body).encode())

    def fail(self, path: str, problem: str, cause: BaseException | None = None) -> NoReturn:
        """Raise a fault of this server."""
        raise RemoteFault(f"{self._url}{path} {problem}; check the address and that the server is thinnet's") from cause

    def _ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        request = Request(self._url + path, data=body, headers=headers)
        try:
            with urlopen(request, timeout=self._timeout_s) as response:
                answer = json.loads(response.read())
        except HTTPError as error:
            self._refused(path, error)
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            slow = " (longer than the timeout)" if isinstance(reason, TimeoutError) else ""
            self.fail(path, f"cannot be reached: {reason or type(error).__name__}{slow}", error)
        except ValueError as error:
            self.fail(path, "does not answer with JSON", error)
        if not isinstance(answer, dict):
            self.fail(path, "does not answer with a JSON object")
        return answer

    def _refused(self, path: str, error: HTTPError) -> NoReturn:
        with error:
            try:
                said = json.loads(error.read())["error"]
            except (OSError, HTTPException, ValueError, KeyError, TypeError):
                said = error.reason
        raise _FAULTS.get(error.code, RemoteFault)(f"{self._url}{path} answered {error.code}: {said}") from error


class _Told:
    """What a server tells of a model."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.version = told["versions"][-1]
        self.couples_rows = bool(told.get("couples_rows", False))
        self.inputs = tuple(_input(one) for one in told["inputs"])
        self.outputs = tuple(Output(one["name"], labels=tuple(one.get("labels") or ())) for one in told["tasks"])


def _input(one: Mapping[str, Any]) -> Input:
    datatype = str(one["datatype"])
    shape = tuple(int(size) for size in one["shape"][1:])  # the batch axis is in front
    return Input(one["name"], _DTYPES.get(datatype, datatype.lower()), shape, tuple(one.get("features") or ()))


def _scorer(server: _Server, told: _Told, body: Mapping[str, Any]) -> Callable[[NDArray[Any], int], Answers]:
    def score(rows: NDArray[Any], first_row: int) -> dict[str, dict[str, NDArray[Any]]]:
        answer = server.predict({**body, "inputs": rows.tolist(), "row_offset": first_row})
        try:
            return _quantities(answer, [output.name for output in told.outputs])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            server.fail("/predict", f"gives no mean and variance for each row ({error!r})", error)

    return score


def _quantities(answer: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, dict[str, NDArray[Any]]]:
    """Return an answer's quantities [B, …] by output and name."""
    found: dict[str, dict[str, NDArray[Any]]] = {output: {} for output in outputs}
    for name, values in answer.items():
        if name in _NO_QUANTITIES or not isinstance(values, (list, dict)):
            continue
        by_output: Mapping[str, Any] = {outputs[0]: values} if len(outputs) == 1 else dict(values)
        for output, rows in by_output.items():
            found[output][name] = np.asarray(rows, dtype=None if name in _NOT_FLOATS else np.float32)
    if not all({"mean", "variance"} <= quantities.keys() for quantities in found.values()):
        raise KeyError("mean, variance")
    return found
