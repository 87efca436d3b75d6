"""Trained weights from a file into a network, by name and strictly; it does not know how the network was built.

Only tensors are read: pickles go through `torch.load(weights_only=True)` and no further.
"""

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from service.errors import InvalidWeights
from service.formats import Format, recognise, refuse, refuse_damaged, whole_object

STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights", "params")
WRAPPER_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # nobody's own names
PREFIXES = ("module.", "model.")  # of data parallelism and Lightning, or a network's own
SHOWN = 10
_DEEPEST = 3
_REASON = 120  # characters of torch's own message
_EXTRA_STATE = "_extra_state"
_BATCH_COUNTS = "num_batches_tracked"  # unused in inference; torch itself fills it in for old files
_UNSUPPORTED = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU, without running anything that the file holds.

    The state dict is looked for inside a checkpoint's usual keys. Names lose what `torch.compile` and sharding put into
    them, and `module.` or `model.` where all of them carry it.

    Args:
        path: A `.safetensors` file, or what `torch.save` wrote of a state dict or a checkpoint.

    Raises:
        InvalidWeights: The file is missing, damaged, holds more than tensors or no state dict; with the cure.
    """
    path = Path(path)
    kind = recognise(path)
    if kind is Format.SAFETENSORS:
        return _plain_names(_read_safetensors(path))
    content = _read_torch(path, archive=kind is Format.TORCH_ARCHIVE)
    state = _find_state(content, _DEEPEST)
    if state is None:
        raise InvalidWeights(f"{path} has no state dict: {_told(content)}; save module.state_dict() with torch.save")
    return _plain_names(state)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load weights into a module, every one of its names exactly once.

    Where the names fit only without or with `module.` or `model.`, they are taken so. A module that is refused may be
    half loaded.

    Args:
        module: What is loaded, in place.
        weights: Tensors by name.

    Returns:
        Names that stand beside the network in a training wrapper's checkpoint, such as a loss's, and were left out.

    Raises:
        InvalidWeights: With the missing, the unexpected and the misshapen names, and a hint where a prefix is to blame.
    """
    own = module.state_dict(keep_vars=True)
    chosen, left_out = _matched(own, weights)
    misfits = {name: text for name in chosen if name in own and (text := _misfit(own[name], chosen[name]))}
    try:
        result = module.load_state_dict({name: x for name, x in chosen.items() if name not in misfits}, strict=False)
    except RuntimeError as error:
        raise InvalidWeights(f"the weights cannot be loaded: {error}; save the module's own state_dict()") from error
    optional = _optional(own, chosen)
    missing = [name for name in result.missing_keys if name not in misfits and name not in optional]
    if missing or result.unexpected_keys or misfits:
        raise InvalidWeights(_mismatch(own, chosen, missing, result.unexpected_keys, misfits))
    return left_out


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InvalidWeights(
            f"{path} is a safetensors file and the package to read it is not installed; pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        refuse_damaged(path, str(error))


def _read_torch(path: Path, *, archive: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on pickle protocols, which the refusal tells
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:
        _refuse_torch(path, str(error))


def _refuse_torch(path: Path, error: str) -> NoReturn:
    """Say what it is that torch would only load by running it."""
    if name := whole_object(path):
        refuse(path, f"a whole pickled object ({name}), which runs code when it is loaded", _loaded(path))
    if foreign := _UNSUPPORTED.search(error):
        refuse(
            path, f"a checkpoint that holds more than tensors ({foreign[1]}), which only code can load", _loaded(path)
        )
    known = "Weights only load failed" not in error and error.strip()
    refuse_damaged(
        path, error.strip().splitlines()[0][:_REASON] if known else "its pickle is not as torch.save writes it"
    )


def _loaded(path: Path) -> str:
    return f"torch.load({str(path)!r}, weights_only=False)  # if you trust it; of a checkpoint, the module in it"


def _find_state(content: object, depth: int) -> dict[str, Tensor] | None:
    """Return the state dict that something is, or holds under a usual key or as its only one."""
    if not isinstance(content, Mapping) or not depth:
        return None
    if (state := _as_state(content)) is not None:
        return state
    for key in STATE_KEYS:
        if (state := _find_state(content.get(key), depth - 1)) is not None:
            return state
    states = [state for value in content.values() if (state := _find_state(value, 1)) is not None]
    return states[0] if len(states) == 1 else None


def _as_state(content: Mapping[Any, Any]) -> dict[str, Tensor] | None:
    named = {key: value for key, value in content.items() if not str(key).endswith(_EXTRA_STATE)}
    tensors = {
        key: value.detach() for key, value in named.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    return tensors if tensors and len(tensors) == len(named) else None


def _told(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"it holds one {type(content).__name__}"
    return f"its keys are {_listed([str(key) for key in content])}" if content else "it is an empty dict"


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {_without_parts(name): x for name, x in weights.items()}
    if len(plain) < len(weights):
        return dict(weights)
    while plain and (prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in plain)), None)):
        plain = {name.removeprefix(prefix): x for name, x in plain.items()}
    return plain


def _without_parts(name: str) -> str:
    for part in WRAPPER_PARTS:
        name = name.replace(part, "")
    return name


def _matched(own: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights under the module's names, where one of the usual prefixes makes all of them fit."""
    if not _covers(own, weights):
        for prefix in PREFIXES:
            if _covers(own, longer := {prefix + name: x for name, x in weights.items()}) and len(longer) <= len(own):
                return longer, ()
            inner = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
            if _covers(own, inner) and all(name in own for name in inner):
                return inner, tuple(name for name in weights if not name.startswith(prefix))
    return dict(weights), ()


def _covers(own: Mapping[str, Any], names: Collection[str]) -> bool:
    return bool(names) and set(own) - set(names) <= _optional(own, names)


def _optional(own: Mapping[str, Any], given: Collection[str]) -> set[str]:
    """Return names that may be missing: batch counts, and names of a tensor that is given under another."""
    shared = {id(x) for name, x in own.items() if name in given}
    return {name for name, x in own.items() if name.endswith(_BATCH_COUNTS) or id(x) in shared}


def _misfit(own: Any, given: Tensor) -> str:
    """Say how a tensor differs from the module's in shape or in kind of number, or return nothing."""
    if not isinstance(own, Tensor) or is_lazy(own):
        return ""
    fits = own.shape == given.shape and given.layout is torch.strided and not given.is_quantized
    same = own.is_complex() == given.is_complex() and own.is_floating_point() == given.is_floating_point()
    return "" if fits and same else f"is {_kind(given)}, the network has {_kind(own)}"


def _kind(x: Tensor) -> str:
    layout = "" if x.layout is torch.strided else f" ({str(x.layout).removeprefix('torch.')})"
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}{layout}"


def _mismatch(
    own: Mapping[str, Any],
    given: Mapping[str, Tensor],
    missing: Collection[str],
    unexpected: Collection[str],
    misfits: Mapping[str, str],
) -> str:
    parts = [
        ("missing from the file", list(missing)),
        ("unexpected in the file", list(unexpected)),
        ("of another shape or type", [f"{name} {text}" for name, text in misfits.items()]),
    ]
    lines = [f"\n    {len(names)} {what}: {_listed(names)}" for what, names in parts if names]
    hint = _prefix_hint(set(own), set(given)) or "build the network with the arguments that it was trained with"
    return f"the weights are not this network's:{''.join(lines)}\n    {hint}"


def _prefix_hint(own: set[str], given: set[str]) -> str:
    """Say which prefix would make every name fit, if one does."""
    name = min(own, default="")
    for other in sorted(given):
        taken, put = other.removesuffix(name), name.removesuffix(other)
        if taken != other and taken.endswith(".") and {taken + each for each in own} <= given:
            return f"every name fits without {taken!r}: save {{name.removeprefix({taken!r}): x for name, x in …}}"
        if put != name and put.endswith(".") and {put + each for each in given} == own:
            return f"every name fits with {put!r} in front: save {{{put!r} + name: x for name, x in …}}"
    return ""


def _listed(names: Collection[str], most: int = SHOWN) -> str:
    rest = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + rest
