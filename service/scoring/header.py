"""Which columns of a table are the model's features and which one tells rows apart; it does not know files' formats."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import InvalidInput
from service.scoring.block import ROW
from service.signature import Input

_IDENTITY = "id"
_SHOWN = 10


@dataclass(frozen=True)
class Header:
    """Where a table has what the model takes.

    Attributes:
        names: Every column's name.
        features: The places of the model's features, in the model's order.
        identity: The place of the column that tells rows apart; None where rows are counted.
    """

    names: tuple[str, ...]
    features: tuple[int, ...]
    identity: int | None

    @property
    def key(self) -> str:
        """The name of the column that tells rows apart."""
        return ROW if self.identity is None else self.names[self.identity]


def match_header(place: str, names: Sequence[str], spec: Input) -> Header:
    """Find the model's features among a table's columns: by name, or in order where they have no names.

    Args:
        place: The table, for messages.
        names: Its columns' names.
        spec: An input whose rows have one axis.

    Raises:
        InvalidInput: A name is missing, unknown, empty or there twice.
    """
    if "" in names:
        raise InvalidInput(
            f"{place}: column {names.index('') + 1} has no name; name it, or leave it out (pandas: index=False)"
        )
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"{place} has the column {name!r} {names.count(name)} times; keep one")
    identity = next(
        (at for at, name in enumerate(names) if name.lower() == _IDENTITY and name not in spec.features), None
    )
    others = tuple(at for at in range(len(names)) if at != identity)
    return Header(tuple(names), _feature_places(place, names, others, spec), identity)


def _feature_places(place: str, names: Sequence[str], others: tuple[int, ...], spec: Input) -> tuple[int, ...]:
    found = [names[at] for at in others]
    if spec.features:
        missing = [name for name in spec.features if name not in found]
        extra = [name for name in found if name not in spec.features]
        if missing or extra:
            raise InvalidInput(f"{place}: {_mismatch(missing, extra, spec.features)}{_separator_hint(names)}")
        return tuple(names.index(name) for name in spec.features)
    if all(_is_number(name) for name in found) and found != [str(index) for index in range(len(found))]:
        raise InvalidInput(f"{place} begins with numbers ({', '.join(found[:3])}, …); put a header above them")
    if spec.shape[0] not in (-1, len(found)):
        raise InvalidInput(
            f"{place} has {len(found)} columns besides id, the model takes {spec.shape[0]} features"
            f"{_separator_hint(names) or '; give one column for each'}"
        )
    return others


def _mismatch(missing: Sequence[str], extra: Sequence[str], features: Sequence[str]) -> str:
    parts = [f"{what} columns: {_listed(names)}" for what, names in (("missing", missing), ("unknown", extra)) if names]
    folded = {name.casefold(): name for name in missing}
    close = (difflib.get_close_matches(name.casefold(), folded, 1) for name in extra)
    near = next((folded[found[0]] for found in close if found), None)
    hint = f"did you mean {near!r}?" if near else f"the model takes {_listed(features)}, and id if there is one"
    return f"{', '.join(parts)}; {hint}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _separator_hint(names: Sequence[str]) -> str:
    found = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    return f"; the file is separated by {found!r}: save it with commas" if found else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
