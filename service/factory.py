"""From `package.module:factory` to the network that it builds; it does not know weights or files of them.

The factory is the caller's own code and runs as such: this is for the command line and notebooks, never for a request.
"""

import difflib
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from service.errors import InvalidFactory

_FORM = "write package.module:factory, such as nets.digits:build"


def build_module(factory: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Import a factory, the current directory's modules included, and call it.

    Args:
        factory: `package.module:factory`; a function or class that returns an `nn.Module`, or such a module itself.
        arguments: Its keyword arguments.

    Raises:
        InvalidFactory: It cannot be found or called, raises, or returns something else.
    """
    place, colon, path = factory.partition(":")
    if not (colon and place and path):
        raise InvalidFactory(f"{factory!r} names no factory; {_FORM}")
    target = _find(factory, _import(factory, place), path)
    built = target if isinstance(target, nn.Module) and not arguments else _call(factory, target, arguments or {})
    if not isinstance(built, nn.Module):
        raise InvalidFactory(f"{factory} returned {_told(built)}; return the nn.Module itself")
    return built


def _import(factory: str, place: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise InvalidFactory(
                f"{factory}: there is no module {error.name!r} in {here} or among the installed packages; {_FORM}"
            ) from error
        raise InvalidFactory(f"{factory}: importing {place} failed: {_where(error)}; install what it needs") from error
    except (Exception, SystemExit) as error:
        raise InvalidFactory(f"{factory}: importing {place} failed: {_where(error)}; correct it there") from error


def _find(factory: str, module: ModuleType, path: str) -> Any:
    target: Any = module
    for name in path.split("."):
        if not hasattr(target, name):
            close = difflib.get_close_matches(name, dir(target), n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it has {', '.join(_public(target)) or 'nothing public'}"
            )
            raise InvalidFactory(f"{factory}: {getattr(target, '__name__', path)} has no {name!r}; {hint}")
        target = getattr(target, name)
    return target


def _call(factory: str, target: Any, arguments: Mapping[str, Any]) -> Any:
    if not callable(target) or isinstance(target, nn.Module):
        raise InvalidFactory(f"{factory} is {_told(target)} and takes no arguments; name a function or class to call")
    try:
        return target(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise InvalidFactory(f"{factory} raised when called with ({given}): {_where(error)}") from error


def _public(target: object, most: int = 10) -> list[str]:
    own = [name for name, value in vars(target).items() if not name.startswith("_") and callable(value)]
    return own[:most]


def _told(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _where(error: BaseException) -> str:
    """Return an exception in one line, with the last line of the caller's code that it came through."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if "site-packages" not in frame.filename and "importlib" not in frame.filename]
    return f"{told} (at {Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line})" if own else told
