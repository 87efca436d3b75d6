"""TOML tables, read key by key with every mistake named, and written; it does not know what the keys mean."""

import json
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any, NoReturn, TypeVar

from service.errors import InvalidModelFolder

_LINE_WIDTH = 120
_LARGEST_WHOLE = (1 << 64) - 1
_Choice = TypeVar("_Choice", bound=Enum)


class Table:
    """One table of a file; what is read is crossed off, and `close` refuses the rest.

    Args:
        place: The file, for messages.
        path: The table's own name, such as `inputs[0]`; empty for the whole file.
        values: Its keys and values.
    """

    def __init__(self, place: str, path: str, values: Mapping[str, Any]) -> None:
        self._place = place
        self._path = path
        self._values = values
        self._read: list[str] = []

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise `InvalidModelFolder` with the file, the key and the problem, which ends with its cure."""
        path = f"{self._path}.{key}" if self._path else key
        raise InvalidModelFolder(f"{self._place}: {path} {problem}")

    @property
    def written(self) -> tuple[str, ...]:
        """The keys that the file has, in its order."""
        return tuple(self._values)

    def text(self, key: str, default: str | None = None) -> str:
        """Read a string."""
        value = self._value(key, default)
        return value if isinstance(value, str) else self._wrong(key, value, "a string")

    def flag(self, key: str, default: bool) -> bool:
        """Read a truth value."""
        value = self._value(key, default)
        return value if isinstance(value, bool) else self._wrong(key, value, "true or false")

    def whole(self, key: str, default: int | None = None) -> int:
        """Read a whole number."""
        value: int = self._value(key, default)
        return value if _is_whole(value) else self._wrong(key, value, "a whole number")

    def number(self, key: str, default: float | None = None) -> float:
        """Read a finite number."""
        value = self._value(key, default)
        return float(value) if _is_number(value) else self._wrong(key, value, "a finite number")

    def choice(self, key: str, choices: type[_Choice], default: _Choice | None = None) -> _Choice:
        """Read one of an enumeration's values."""
        value = self.text(key, None if default is None else default.value)
        known = {choice.value: choice for choice in choices}
        return known.get(value) or self.fail(key, f"= {value!r} is not known; give one of {', '.join(known)}")

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of strings; empty where the key is absent."""
        return self._list(key, lambda item: isinstance(item, str), "a list of strings")

    def wholes(self, key: str) -> tuple[int, ...]:
        """Read a list of whole numbers; the key must be there."""
        self._value(key, None)
        return self._list(key, _is_whole, "a list of whole numbers")

    def numbers(self, key: str) -> tuple[float, ...]:
        """Read a list of finite numbers; empty where the key is absent."""
        return tuple(float(item) for item in self._list(key, _is_number, "a list of finite numbers"))

    def table(self, key: str) -> "Table":
        """Read a table inside this one; empty where the key is absent."""
        value = self._value(key, {})
        return self._inner(key, value) if isinstance(value, dict) else self._wrong(key, value, f"a table, [{key}]")

    def tables(self, key: str) -> tuple["Table", ...]:
        """Read a list of tables, at least one."""
        values = self._list(key, lambda item: isinstance(item, dict), f"a list of tables, [[{key}]]")
        if not values:
            self.fail(key, f"is missing; add one [[{key}]] for each")
        return tuple(self._inner(f"{key}[{index}]", value) for index, value in enumerate(values))

    def close(self) -> None:
        """Raise on a key that nobody read, with the nearest known one."""
        for key in self._values:
            if key not in self._read:
                near = get_close_matches(key, self._read, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(set(self._read)))}"
                self.fail(key, f"is not a known key; {hint}")

    def _value(self, key: str, default: Any) -> Any:
        self._read.append(key)
        value = self._values.get(key, default)
        return self.fail(key, "is missing; add it") if value is None else value

    def _list(self, key: str, fits: Any, kind: str) -> tuple[Any, ...]:
        value = self._value(key, [])
        return tuple(value) if isinstance(value, list) and all(map(fits, value)) else self._wrong(key, value, kind)

    def _inner(self, key: str, values: Mapping[str, Any]) -> "Table":
        return Table(self._place, f"{self._path}.{key}" if self._path else key, values)

    def _wrong(self, key: str, value: object, wanted: str) -> NoReturn:
        self.fail(key, f"= {_shown(value)} is not {wanted}; write {wanted}")


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        shown = "a number of too many digits"
    return shown if len(shown) <= 80 else shown[:77] + "…"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_WHOLE


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def toml_lines(values: Mapping[str, Any]) -> list[str]:
    """Write keys whose values are strings, truth values, finite numbers, or lists of them, one a line."""
    return [f"{_key(key)} = {_literal(value)}" for key, value in values.items()]


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _literal(key)


def _literal(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if _is_number(value):
        return repr(value)
    if isinstance(value, Sequence):
        return _array([_literal(item) for item in value])
    raise InvalidModelFolder(f"{value!r} cannot be written to TOML; give strings, truth values and finite numbers")


def _array(items: list[str]) -> str:
    line = f"[{', '.join(items)}]"
    return line if len(line) <= _LINE_WIDTH else "\n".join(["[", *(f"    {item}," for item in items), "]"])
