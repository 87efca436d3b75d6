"""From a factory and a file of weights to a model folder, with what was found on the way; it prints nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from service.errors import InvalidInput, InvalidPlan, InvalidWeights, ThinnetError
from service.example import parse_example
from service.factory import build_module
from service.folder import model_name
from service.graph.sites import Site
from service.plan import TRAINED, fitting, make_plan
from service.predictor import Predictor
from service.repository import check_device
from service.signature import Task
from service.weights import load_weights, read_weights

_SHOWN = 5


@dataclass(frozen=True)
class Exported:
    """What an export made and found.

    Attributes:
        folder: The version's folder.
        sites: Where the network can be random.
        active: The names of the sites that are random where a request names no plan.
        lost: Modules whose randomness could not be captured.
        notes: What whoever exports should know, in sentences.
    """

    folder: Path
    sites: tuple[Site, ...]
    active: tuple[str, ...]
    lost: tuple[str, ...]
    notes: tuple[str, ...]


def export_folder(
    factory: str,
    folder: Path | str,
    examples: Sequence[str],
    weights: Path | str | None = None,
    *,
    no_weights: bool = False,
    arguments: Mapping[str, Any] | None = None,
    task: Task | str | None = None,
    labels: Sequence[str] = (),
    description: str = "",
    score: Mapping[str, float] | None = None,
    version: int | None = None,
    variant: str = TRAINED,
    passes: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> Exported:
    """Build a network, load its weights, capture it and write a model folder, or a new version of it.

    Args:
        factory: `package.module:factory`; its code runs.
        folder: The model's folder; its name is the model's.
        examples: The inputs' row shapes, as `parse_example` reads them.
        weights: A file of weights.
        no_weights: Whether the factory's own weights are the ones to export.
        arguments: The factory's keyword arguments.
        task: A single output's task; None leaves plain regression.
        labels: The single output's class or label names.
        description: What the model is, for people.
        score: Held-out figures by name.
        version: The version's number; None takes the next.
        variant: The variant where a request names none.
        passes: The number of passes where a request names none; None keeps thinnet's.
        seed: The seed where a request names none; None keeps thinnet's.
        device: Where the network runs while it is captured; the folder serves on any.

    Raises:
        InvalidFactory, InvalidWeights, InvalidInput, InvalidPlan: Something given does not fit.
        CaptureFailed, UnclaimedRandomness, ImpureGraph: The network cannot be served.
        InvalidModelFolder: The version is there already, or something said of the model is not valid.
    """
    model_name(Path(folder))
    _check_choice(weights, no_weights)
    example = parse_example(examples)
    state = None if weights is None else read_weights(Path(weights))
    module = build_module(factory, arguments)
    left_out = () if state is None else load_weights(module, state)
    predictor = _capture(module, example, check_device(device))
    active = _activate(predictor, variant)
    predictor.passes = predictor.passes_of(passes) if active else passes or predictor.passes
    predictor.seed = predictor.seed if seed is None else seed
    home = predictor.save(
        folder, description=description, task=_task(task), labels=labels, score=score, version=version
    )
    notes = [*_weight_notes(factory, state is not None, left_out), *_site_notes(predictor, active)]
    return Exported(home, predictor.sites, active, predictor.lost, tuple(notes))


def _check_choice(weights: Path | str | None, no_weights: bool) -> None:
    if weights is None and not no_weights:
        raise InvalidWeights("no weights are given; give a file of them, or --no-weights to export the factory's own")
    if weights is not None and no_weights:
        raise InvalidWeights(f"both {weights} and --no-weights are given; give one of the two")


def _task(task: Task | str | None) -> Task | None:
    if task is None or task in tuple(Task):
        return None if task is None else Task(task)
    raise InvalidInput(f"there is no task {task!r}; the tasks are {', '.join(Task)}")


def _capture(module: nn.Module, example: tuple[Tensor, ...] | dict[str, Tensor], device: torch.device) -> Predictor:
    try:
        return Predictor.capture(module, example, device=device)
    except ThinnetError:
        raise
    except Exception as error:
        given = example.items() if isinstance(example, dict) else enumerate(example, 1)
        shapes = ", ".join(f"{name}: {str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for name, x in given)
        lines = str(error).strip().splitlines() or ["no message"]
        raise InvalidInput(
            f"the network does not run on the example ({shapes}): {type(error).__name__}: {lines[0]}; "
            "give forward's inputs in order or by name, each row's shape without the batch axis"
        ) from error


def _activate(predictor: Predictor, variant: str) -> tuple[str, ...]:
    """Make a variant the model's own and return the sites that it makes random, which may be none as trained."""
    predictor.variant = variant
    try:
        return tuple(make_plan(predictor.sites, variant))
    except InvalidPlan:
        if variant != TRAINED:
            raise
        return ()


def _weight_notes(factory: str, loaded: bool, left_out: Sequence[str]) -> list[str]:
    if not loaded:
        return [f"the weights are those that {factory} made itself; unless it loads trained ones, they are not trained"]
    rest = f", and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
    return [f"left out, beside the network: {', '.join(left_out[:_SHOWN])}{rest}"] if left_out else []


def _site_notes(predictor: Predictor, active: Sequence[str]) -> list[str]:
    notes = [f"{name} stays in eval mode: its randomness cannot be captured" for name in predictor.lost]
    if predictor.couples_rows:
        notes.append("a row's answer depends on the other rows of its request")
    if active:
        return notes
    variants = list(dict.fromkeys(name for site in predictor.sites for name in fitting(site)))
    if variants:
        cure = f"name a variant in every request, or export with one as the model's own: {', '.join(variants)}"
    else:
        cure = "no variant fits any of its sites, so no request can be answered; add a dropout layer to the network"
    return [*notes, f"nothing in this network is random as it was trained: {cure}"]
