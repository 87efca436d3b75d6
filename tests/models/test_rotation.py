from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from scipy import ndimage

from service import Predictor

ANGLES = range(0, 181, 15)
COLUMNS = ("entropy", "mutual_information")
DIGITS = 100


@pytest.mark.parametrize("name", ["digits", "digits-dropconnect", "digits-rows"])
def test_a_digit_turned_on_its_side_is_doubted(
    name: str, script: Callable[[str], ModuleType], predictor: Callable[[str], Predictor]
) -> None:
    """The experiment of Gal & Ghahramani 2016, section 5.2, over 100 unseen digits."""
    images, loaded = script(name).held_out()[0][:DIGITS].numpy(), predictor(name)
    means = {}
    for angle in ANGLES:
        turned = ndimage.rotate(images, angle, axes=(2, 1), reshape=False, order=1)
        answer = loaded.predict(torch.from_numpy(turned)).outputs["digit"]
        means[angle] = {column: answer[column].mean().item() for column in COLUMNS}
    print(f"\n{name}\nangle", *COLUMNS)
    for angle, found in means.items():
        print(f"{angle:>4}°", *(f"{found[column]:{len(column)}.3f}" for column in COLUMNS))
    for column in COLUMNS:
        assert means[90][column] > 1.5 * means[0][column]
