"""Score a table with a server's `POST /predict`, over the standard library's HTTP; it does not know files or torch.

The version that the server has at the start answers every block.
"""

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from service.errors import BadRequest, ModelNotFound, NotFound, NotReady, RemoteFault, ThinnetError, TooLarge
from service.scoring.table import BLOCK_ROWS, ScoreBlock, Summary, score_table
from service.signature import Input, Output

TIMEOUT_S = 60.0
Seed = int | None | Literal["default"]
_FAULTS: Mapping[int, type[ThinnetError]] = {400: BadRequest, 404: NotFound, 413: TooLarge, 503: NotReady}
_NO_QUANTITIES = {"model", "version", "passes", "seed", "scope", "estimator", "noise", "notes"}
_NOT_FLOATS = ("label", "passes_used")
_DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "FP16": "float16", "FP32": "float32", "FP64": "float64"}


def score_remotely(
    url: str,
    source: Path,
    target: Path,
    *,
    model: str | None = None,
    version: int | str | None = None,
    passes: int | None = None,
    variant: str | None = None,
    p: float | None = None,
    sites: Mapping[str, Any] | None = None,
    seed: Seed = "default",
    scope: str = "pass",
    estimator: str = "sampled",
    tolerance: float | None = None,
    precision: str = "float32",
    quantities: Sequence[str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Summary:
    """Score a CSV file at a server; the answers are those that `score_locally` gives with the same model.

    Args:
        url: The server's address, such as `http://localhost:8000`.
        source: The rows, as `score_table` reads them.
        target: Where the result goes.
        model: The model's name; may be left out where the server has one model.
        version: Its version; None takes the highest.
        passes: As in `Predictor.predict`, like all that follow.
        variant: The whole plan's variant.
        p: The whole plan's drop rate.
        sites: Overrides by site.
        seed: The noise's seed, one for the whole file; None draws a fresh one.
        scope: `pass` or `row`.
        estimator: `sampled` or `integrated`.
        tolerance: The relative error of a row's variances at which its passes end.
        precision: What products run in.
        quantities: What to compute besides the task's defaults.
        timeout_s: How long a block may take.

    Raises:
        InvalidInput: With line and column, or what is wrong with the files.
        BadRequest, NotFound, TooLarge, NotReady: What the server refused.
        RemoteFault: It cannot be reached, or its answer is not as agreed.
    """
    server = _Server(url, timeout_s)
    name = model or server.sole_model()
    told = server.describe(name, version)
    asked = {"passes": passes, "variant": variant, "p": p, "sites": sites, "quantities": quantities}
    asked["tolerance"] = tolerance
    body = {key: value for key, value in asked.items() if value is not None}
    body |= {"model": name, "scope": scope, "estimator": estimator, "precision": precision}
    body["version"] = version if version is not None else told.version
    if seed != "default":
        body["seed"] = secrets.randbits(53) if seed is None else seed
    block_rows = sys.maxsize if told.couples_rows else BLOCK_ROWS
    return score_table(source, target, _scorer(server, told, body), told.inputs, told.outputs, block_rows)


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


def _scorer(server: _Server, told: _Told, body: Mapping[str, Any]) -> ScoreBlock:
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
