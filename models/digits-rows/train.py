"""Train the digit classifier that reads rows and write its model folder: `python models/digits-rows/train.py [folder]`.

Units, rate, epochs and decay were chosen by validation inside the training part; the held-out fifth only scores.
"""

import json
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.dropout import DropoutLSTM, VariationalRNN
from service.signature import Activation, Input, Output, Task

UNITS, P = 64, 0.2
EPOCHS, BATCH, RATE, DECAY = 40, 32, 5e-3, 1e-2
DESCRIPTION = (
    "Handwritten digits, 8 x 8 pixels from 0 (paper) to 16 (ink), as scikit-learn's load_digits has them. "
    "An LSTM reads the rows from top to bottom, with variational dropout of its inputs and states."
)


class RowReader(nn.Module):
    """An LSTM that reads an image row by row; its last state gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = DropoutLSTM(8, UNITS, batch_first=True, variant=VariationalRNN(P))
        self.logits = nn.Linear(UNITS, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Map standardised images [B, 8, 8] to logits [B, 10]."""
        _, (h, _) = self.rows(image)
        logits: Tensor = self.logits(h[-1])
        return logits


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


def fit(module: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train on standardised images [B, 8, 8] and classes [B]."""
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs=EPOCHS, steps_per_epoch=-(-len(y) // BATCH))
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(y)), BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x[rows]), y[rows])
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
            schedule.step()


def main(folder: Path) -> None:
    """Train, score on the held-out fifth, and write the folder's next version and `example.json`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, x_out, y, y_out = split()
    mean, std = float(x.mean()), float(x.std())
    module = RowReader()
    fit(module, (x - mean) / std, y)
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
