"""What goes into a network and what comes out, as its user means it; it does not know tensors' values or any file.

An `Input` is one tensor with the batch in front; an `Output` says how one raw output of the network becomes an answer:
activation first, then the way back to the target's units, both inside every pass.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class Task(StrEnum):
    """What an output means."""

    CLASSIFICATION = "classification"
    MULTILABEL = "multilabel"
    REGRESSION = "regression"
    GAUSSIAN = "gaussian"
    """A mean and a log-variance: the halves of the last axis, in this order."""


class Activation(StrEnum):
    """What turns a raw output into the task's quantity; `none` where the network already applies it."""

    NONE = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


_ACTIVATIONS = {Task.CLASSIFICATION: Activation.SOFTMAX, Task.MULTILABEL: Activation.SIGMOID}


@dataclass(frozen=True)
class Input:
    """One input tensor.

    Attributes:
        name: Its name on the wire and in Python.
        dtype: A torch dtype by name, such as `float32` or `int64`.
        shape: The shape of one row, without the batch axis; -1 where the length varies.
        features: Names along the last axis, or empty.
        units: The features' units, or empty.
        mean: What is subtracted from each feature before the network, or empty.
        std: What it is then divided by, or empty.
    """

    name: str
    dtype: str = "float32"
    shape: tuple[int, ...] = ()
    features: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Output:
    """One output tensor.

    Attributes:
        name: Its name on the wire and in Python.
        task: What it means.
        shape: The raw shape of one row, without the batch axis; -1 where the length varies.
        activation: What is applied to it inside every pass.
        labels: Class or label names along the class axis, or empty.
        class_axis: The axis of the classes, counted with the batch axis as 0; negative from the end.
        scale: What a regression value is multiplied by to be in the target's units.
        shift: What is then added.
        exp: Whether the exponential is taken last (a target learned as a logarithm).
        noise_precision: τ, one over the observation noise's variance in the target's units; None where unknown.
        unit: The target's unit, or empty.
    """

    name: str = "output"
    task: Task = Task.REGRESSION
    shape: tuple[int, ...] = ()
    activation: Activation = Activation.NONE
    labels: tuple[str, ...] = ()
    class_axis: int = -1
    scale: float = 1.0
    shift: float = 0.0
    exp: bool = False
    noise_precision: float | None = None
    unit: str = ""

    def with_task(self, task: Task, labels: tuple[str, ...] = ()) -> "Output":
        """Return the output with a task, and the activation that the task needs where there is none."""
        activation = self.activation if self.activation is not Activation.NONE else _ACTIVATIONS.get(task)
        return replace(self, task=task, activation=activation or Activation.NONE, labels=labels or self.labels)
