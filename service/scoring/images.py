"""A folder of images, a row each; it does not know what is seen on them."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.scoring.block import Block, Fault
from service.scoring.limits import Limits
from service.signature import Input

_COLOURS = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageSource:
    """Images in the order of their names, which tell rows apart; pixels are 0 to 255, for the model's mean and std.

    Args:
        place: The folder.
        files: The images.
        spec: An input [H, W], [C, H, W] or [H, W, C], of 1, 3 or 4 colours.

    Raises:
        InvalidInput: The model takes no images, or nothing here can decode them.
    """

    is_seekable = True

    def __init__(self, place: Path, files: tuple[Path, ...], spec: Input) -> None:
        if find_spec("PIL") is None:
            raise InvalidInput(f"{place}: images are read by Pillow, which is not here; `pip install pillow`")
        self.place, self.files = place, files
        self._spec, self._limits = spec, Limits.of(spec.dtype)
        self._is_first, self._mode, self._size = _layout(place, spec)

    def count(self) -> int | None:
        """Return how many images there are."""
        return len(self.files)

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield the images in blocks."""
        block_rows = min(block_rows, len(self.files))
        for start in range(first_row, len(self.files), block_rows):
            yield self._block(self.files[start : start + block_rows], start)

    def _block(self, files: Sequence[Path], first_row: int) -> Block:
        import pyarrow as pa

        rows = np.zeros((len(files), *self._spec.shape), self._limits.array)
        faults = []
        for at, file in enumerate(files):
            try:
                rows[at] = self._pixels(file)
            except ValueError as error:
                faults.append(Fault(first_row + at, "", str(error), str(file)))
        keys = pa.array([file.name for file in files], pa.string())
        return Block("id", keys, rows, first_row, tuple(faults))

    def _pixels(self, file: Path) -> NDArray[Any]:
        from PIL import Image

        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert(self._mode))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot be read as an image ({error}); save it anew, or take it out") from error
        height, width = pixels.shape[:2]
        if (height, width) != self._size:
            raise ValueError(f"has {width} x {height} pixels, the model takes {self._size[1]} x {self._size[0]}")
        if self._is_first:
            pixels = np.moveaxis(pixels.reshape(height, width, -1), -1, 0)
        return pixels.reshape(self._spec.shape)


def _layout(place: Path, spec: Input) -> tuple[bool, str, tuple[int, int]]:
    """Return whether colours come first, what they are, and height and width."""
    shape = spec.shape
    if len(shape) == 2 and -1 not in shape:
        return False, "L", (shape[0], shape[1])
    if len(shape) == 3 and -1 not in shape:
        if shape[0] in _COLOURS:
            return True, _COLOURS[shape[0]], (shape[1], shape[2])
        if shape[2] in _COLOURS:
            return False, _COLOURS[shape[2]], (shape[0], shape[1])
    raise InvalidInput(
        f"{place}: a folder of images is rows of [H, W], [C, H, W] or [H, W, C], and the model takes "
        f"{spec.name} [rows, {', '.join(map(str, shape))}]"
    )
