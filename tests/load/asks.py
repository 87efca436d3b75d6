"""Questions to a server: many that may run together and many that may not, over every route and body that it takes.

They do not know how they are sent.
"""

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from served import save_models

LENGTH = "Inference-Header-Content-Length"
MODELS = Path(__file__).parents[2] / "models"
FRESH = "fresh"


@dataclass(frozen=True)
class Tensor:
    """What an input takes: its shape without rows, and the largest whole number, or None for reals."""

    shape: tuple[int, ...]
    most: int | None = None

    def rows(self, chance: random.Random, count: int) -> np.ndarray:
        noise = np.random.default_rng(chance.getrandbits(32))
        if self.most is not None:
            return noise.integers(0, self.most + 1, (count, *self.shape))
        return noise.normal(0, 2, (count, *self.shape)).astype(np.float32).round(3)


@dataclass(frozen=True)
class Asked:
    """What may be asked of a model.

    Attributes:
        inputs: Its inputs by name.
        plans: Variants that fit it.
        quantities: What it can tell besides mean and variance.
        integrates: Whether its last site can be integrated.
    """

    inputs: Mapping[str, Tensor]
    plans: tuple[Mapping[str, Any], ...]
    quantities: tuple[str, ...] = ("quantile_0.9", "samples", "standard_error", "deterministic")
    integrates: bool = False


TRAINED: Mapping[str, Any] = {}
OTHERS = ({"variant": "bernoulli", "p": 0.2}, {"variant": "gaussian", "p": 0.3})
KNOWN = {
    "digits": Asked({"image": Tensor((8, 8), 16)}, (TRAINED, TRAINED, *OTHERS)),
    "digits-dropconnect": Asked(
        {"image": Tensor((8, 8), 16)}, (TRAINED, TRAINED, {"variant": "dropconnect", "p": 0.3})
    ),
    "digits-rows": Asked({"image": Tensor((8, 8), 16)}, (TRAINED, {"variant": "bernoulli", "p": 0.1})),
    "diabetes": Asked({"patient": Tensor((10,))}, (TRAINED, *OTHERS)),
    "line": Asked({"input": Tensor((3,))}, (TRAINED, *OTHERS, {"sites": {"1": 0.5}}), integrates=True),
    "two": Asked(
        {"tokens": Tensor((5,), 6), "features": Tensor((2,))},
        (TRAINED, *OTHERS),
        ("classes.quantile_0.9", "measure.samples", "classes.entropy", "deterministic"),
    ),
}


@dataclass(frozen=True)
class Ask:
    """One question.

    Attributes:
        question: The body of `POST /predict`, its inputs arrays by name.
        route: `predict`, or `json` or `binary` of the Open Inference Protocol.
    """

    question: Mapping[str, Any]
    route: str = "predict"

    def with_seed(self, seed: int) -> "Ask":
        return replace(self, question={**self.question, "seed": seed})

    @property
    def is_fresh(self) -> bool:
        return self.question.get("seed", 0) is None

    @property
    def path(self) -> str:
        return "/predict" if self.route == "predict" else f"/v2/models/{self.question['model']}/infer"

    @cached_property
    def message(self) -> tuple[bytes, dict[str, str]]:
        """The body and its headers."""
        if self.route == "predict":
            inputs = {name: values.tolist() for name, values in self.question["inputs"].items()}
            return json.dumps({**self.question, "inputs": inputs}).encode(), {"Content-Type": "application/json"}
        binary = self.route == "binary"
        header = json.dumps(self._infer(binary)).encode()
        raw = b"".join(values.tobytes() for values in self.question["inputs"].values()) if binary else b""
        return header + raw, ({LENGTH: str(len(header))} if binary else {"Content-Type": "application/json"})

    def _infer(self, binary: bool) -> dict[str, Any]:
        inputs = []
        for name, values in self.question["inputs"].items():
            datatype = "INT64" if values.dtype.kind == "i" else "FP32"
            entry: dict[str, Any] = {"name": name, "shape": list(values.shape), "datatype": datatype}
            entry |= {"parameters": {"binary_data_size": values.nbytes}} if binary else {"data": values.tolist()}
            inputs.append(entry)
        own = {key: value for key, value in self.question.items() if key not in ("model", "inputs", "quantities")}
        if "sites" in own:
            own["sites"] = json.dumps(own["sites"])
        if "seed" in own and own["seed"] is None:
            own["seed"] = FRESH
        two = self.question["model"] == "two"
        unasked = ["classes.mean", "measure.variance"] if two else ["mean", "variance"]
        unasked += [] if two or "tolerance" not in own else ["passes_used"]
        outputs = [{"name": name} for name in (*unasked, *self.question.get("quantities", ()))]
        return {"inputs": inputs, "outputs": outputs, "parameters": own | {"binary_data_output": binary}}

    def read(self, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return an answer's contents by name: plain values and arrays."""
        if self.route == "predict":
            return dict(json.loads(body))
        length = int(headers.get(LENGTH, len(body)))
        found, rest = json.loads(body[:length]), body[length:]
        told = {key: value for key, value in found.items() if key != "outputs"}
        for each in found.get("outputs", ()):
            values = each.get("data")
            if values is None:
                size = each["parameters"]["binary_data_size"]
                raw, rest = rest[:size], rest[size:]
                values = np.frombuffer(raw, "<i8" if each["datatype"] == "INT64" else "<f4").tolist()
            told[each["name"]] = [each["shape"], values]
        return told


def questions(count: int, seed: int = 0) -> list[Ask]:
    """Return distinct questions; many agree in model, plan, seed and scope, so that a server may run them together."""
    chance = random.Random(seed)
    return [_question(chance) for _ in range(count)]


def _question(chance: random.Random) -> Ask:
    model = chance.choice(list(KNOWN))
    known = KNOWN[model]
    rows = chance.choice((1, 1, 2, 3, 7))
    inputs = {name: tensor.rows(chance, rows) for name, tensor in known.inputs.items()}
    question: dict[str, Any] = {"model": model, "inputs": inputs, **chance.choice(known.plans)}
    question["passes"] = chance.choice((2, 20, 50, 100, 300))
    question |= chance.choice(({}, {}, {"seed": 1}, {"seed": 7}, {"seed": None}))
    if chance.random() < 0.25:
        question |= {"scope": "row", "row_offset": chance.choice((0, 5))}
    kind = chance.random()
    if kind < 0.15:
        question |= {"tolerance": 0.25, "passes": 512}
    elif kind < 0.6:
        question["quantities"] = chance.sample(known.quantities, chance.choice((1, 2)))
    elif kind < 0.7 and known.integrates:
        question["estimator"] = "integrated"
    elif kind < 0.75:
        question["passes"] = 1  # a fault of the caller's: it fails alone
    return Ask(question, chance.choice(("predict", "predict", "json", "binary")))


def drawn(pool: list[Ask], count: int, seed: int = 1) -> Iterator[Ask]:
    """Give a number of questions of a pool: all of them as often as they go, in a random order."""
    chance = random.Random(seed)
    order = [pool[place % len(pool)] for place in range(count)]
    chance.shuffle(order)
    yield from order


def heavy(passes: int, rows: int = 16, seed: int = 0, model: str = "digits") -> Ask:
    """Return a question that costs what it is told to."""
    inputs = {name: tensor.rows(random.Random(seed), rows) for name, tensor in KNOWN[model].inputs.items()}
    return Ask({"model": model, "inputs": inputs, "passes": passes, "seed": seed})


def light(seed: int = 0) -> Ask:
    """Return a question that costs next to nothing."""
    return heavy(20, 1, seed, "line")


def save_folder(folder: Path) -> Path:
    """Write the models that are asked: those committed here, and small ones with difficulties."""
    save_models(folder)
    for name in KNOWN:
        if (MODELS / name).is_dir():
            shutil.copytree(MODELS / name, folder / name)
    return folder
