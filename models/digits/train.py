"""Train the convolutional digit classifier and write its model folder: `python models/digits/train.py [folder]`.

Widths, rates, epochs and decay were chosen by validation inside the training part; the held-out fifth only scores.
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.signature import Activation, Input, Output, Task

EPOCHS, BATCH, RATE, DECAY = 60, 32, 3e-3, 1e-2
TURN, SHRINK, SHIFT = 0.3, 0.4, 0.25  # at most: radians, added to 1 / size, half widths
DESCRIPTION = (
    "Handwritten digits, 8 x 8 pixels from 0 (paper) to 16 (ink), as scikit-learn's load_digits has them. "
    "Two convolutions with spatial dropout, then standard dropout."
)


def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training and held-out images [B, 8, 8], then training and held-out classes [B]."""
    digits = load_digits()
    images, classes = torch.tensor(digits.images, dtype=torch.float32), torch.tensor(digits.target)
    x, x_out, y, y_out = train_test_split(images, classes, test_size=0.2, random_state=0, stratify=classes)
    return x, x_out, y, y_out


def held_out() -> tuple[Tensor, Tensor]:
    """Return the images [360, 8, 8] and classes [360] of the fifth that training never sees."""
    _, x_out, _, y_out = split()
    return x_out, y_out


def network() -> nn.Module:
    """Return the network before training; it takes standardised images [B, 8, 8] and gives logits [B, 10]."""
    layers: list[tuple[str, nn.Module]] = [
        ("channel", nn.Unflatten(1, (1, 8))),
        ("conv1", nn.Conv2d(1, 24, 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(24, 48, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("pool", nn.MaxPool2d(2)),
        ("drop_channels", nn.Dropout2d(0.3)),
        ("flatten", nn.Flatten()),
        ("hidden", nn.Linear(48 * 4 * 4, 128)),
        ("relu3", nn.ReLU()),
        ("drop_units", nn.Dropout(0.5)),
        ("logits", nn.Linear(128, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def moved(images: Tensor) -> Tensor:
    """Turn, shrink and shift each image [B, 8, 8] at random.

    Unmoved, the digits hardly touch the sides, and whatever does, such as a digit turned by 90°, is surely a 4.
    """
    turn, shift = TURN * (2 * torch.rand(len(images)) - 1), SHIFT * (2 * torch.rand(2, len(images)) - 1)
    sin, cos = (1 + SHRINK * torch.rand(len(images))) * torch.stack([turn.sin(), turn.cos()])
    affine = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], -1).reshape(-1, 2, 3)
    grid = F.affine_grid(affine, [len(images), 1, 8, 8], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def fit(module: nn.Module, images: Tensor, mean: float, std: float, y: Tensor) -> None:
    """Train on images [B, 8, 8] and classes [B]; the network sees (images - mean) / std."""
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs=EPOCHS, steps_per_epoch=-(-len(y) // BATCH))
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(y)), BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(module((moved(images[rows]) - mean) / std), y[rows])
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            schedule.step()


def main(folder: Path) -> None:
    """Train, score on the held-out fifth, and write the folder's next version and `example.json`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, x_out, y, y_out = split()
    mean, std = float(x.mean()), float(x.std())
    module = network()
    fit(module, x, mean, std, y)
    inputs = [Input("image", shape=(8, 8), mean=(mean,), std=(std,))]
    labels = tuple(map(str, range(10)))
    outputs = [Output("digit", Task.CLASSIFICATION, (10,), Activation.SOFTMAX, labels)]
    predictor = Predictor.capture(module, (x[:2] - mean) / std, inputs=inputs, outputs=outputs)
    answer = predictor.predict(x_out).outputs["digit"]
    score = {
        "accuracy": float((answer["label"] == y_out).float().mean()),
        "log_likelihood": -float(F.nll_loss(answer["mean"].log(), y_out)),
    }
    score = {name: round(value, 4) for name, value in score.items()}
    print(predictor.save(folder, description=DESCRIPTION, score=score), score)
    doubt = answer["mutual_information"]
    rows = x_out[[int(doubt.argmin()), int(doubt.argmax())]]  # the passes agree on one and not on the other
    example = {"model": folder.resolve().name, "inputs": rows.int().tolist()}
    (folder / "example.json").write_text(json.dumps(example) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
