"""What a server tells of its models and limits, typed; it does not know how it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from service.client.exchange import Reply

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class InputTensor:
    """One input of a model.

    Attributes:
        name: Its name.
        datatype: The Open Inference Protocol's name of its type, such as `FP32`.
        shape: Its shape, the rows in front; -1 where a length varies.
        features: Names along the last axis, or empty.
        units: The features' units, or empty.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    features: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputTask:
    """What one output of a model means.

    Attributes:
        name: Its name.
        task: `classification`, `multilabel`, `regression` or `gaussian`.
        labels: The classes' names, or empty.
        unit: The target's unit, or empty.
    """

    name: str
    task: str
    labels: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True)
class Site:
    """A place where a variant can act.

    Attributes:
        name: Its name.
        kind: What stands there.
        shape: The shape that its noise has for one row.
        variant: What acts there as trained; None where nothing does.
        p: Its drop rate as trained; None where nothing acts.
        parameters: Its variant's other parameters.
        fits: The variants that fit it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    variant: str | None
    p: float | None
    parameters: Mapping[str, float]
    fits: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """One version of a model that a server has.

    Attributes:
        name: Its name.
        version: The version that is described.
        versions: All that there are, lowest first.
        fingerprint: Changes where its answers would.
        operations: Multiplications and additions of one row's pass, about.
        description: What it is, for people.
        inputs: What it takes.
        outputs: What it gives.
        sites: Where variants can act.
        defaults: `passes`, `seed` and `variant` where a request names none.
        score: Held-out figures by name.
        couples_rows: Whether a row's answer depends on the others.
        lost: Modules whose randomness could not be captured.
    """

    name: str
    version: int
    versions: tuple[int, ...]
    fingerprint: str
    operations: float
    description: str
    inputs: tuple[InputTensor, ...]
    outputs: tuple[OutputTask, ...]
    sites: tuple[Site, ...]
    defaults: Mapping[str, Any]
    score: Mapping[str, float]
    couples_rows: bool
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Limit:
    """A limit in force: its value, its unit, and what it bounds."""

    value: float
    unit: str
    what: str


@dataclass(frozen=True)
class Limits:
    """What requests are held to.

    Attributes:
        limits: By the setting's name.
        key: Whose key it is that asks.
        cost_s_per_minute: Seconds of compute a minute that the key has; None is as much as there is.
        left_s: How many of them are left now.
    """

    limits: Mapping[str, Limit]
    key: str
    cost_s_per_minute: float | None
    left_s: float | None


@dataclass(frozen=True)
class Health:
    """Whether a server that lives is ready, and why it is not."""

    ready: bool
    reason: str = ""


def read_model(reply: Reply) -> Model:
    """Return the model that an answer describes.

    Raises:
        RemoteFault: It describes none, or none of thinnet's.
    """
    told = reply.json()
    try:
        named = {
            "version": int(told["version"]),
            "versions": tuple(int(each) for each in told["versions"]),
            "inputs": tuple(_read(InputTensor, each) for each in told["inputs"]),
            "outputs": tuple(_read(OutputTask, each) for each in told["tasks"]),
            "sites": tuple(_read(Site, each) for each in told["sites"]),
        }
        return _read(Model, {**told, **named})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise reply.foreign(f"describes no model of thinnet's ({error!r})") from None


def read_limits(reply: Reply) -> Limits:
    """Return the limits that an answer tells.

    Raises:
        RemoteFault: It tells none.
    """
    told = reply.json()
    try:
        key = told["key"]
        limits = {name: _read(Limit, each) for name, each in told["limits"].items()}
        return Limits(limits, key["name"], key["cost_s_per_minute"], key["left_s"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise reply.foreign(f"tells no limits ({error!r})") from None


def _read(kind: type[_Kind], told: Mapping[str, Any]) -> _Kind:
    """Return a dataclass of the fields that were told; lists become tuples, and what is new in a server is left out."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type] # a dataclass
    known = {name: told[name] for name in names if name in told}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
