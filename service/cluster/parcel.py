"""A model's folder as one value, for machines that do not have the folder; it does not know what is in it."""

from collections.abc import Mapping
from pathlib import Path

Parcel = Mapping[str, bytes]
"""The files of one version of a model, by their place in the folder of the model's name."""


def packed(program: Path) -> Parcel:
    """Return the files of one version of a model.

    Args:
        program: `<name>/<version>/program.pt2`, as a card has it.
    """
    home = program.parents[1]
    files = [each for folder in (home, program.parent) for each in sorted(folder.iterdir()) if each.is_file()]
    return {str(file.relative_to(home.parent)): file.read_bytes() for file in files}


def unpacked(parcel: Parcel, folder: Path) -> Path:
    """Write the files below a folder, and return the model's."""
    for name, content in parcel.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return folder / Path(next(iter(parcel))).parts[0]
