"""Train the diabetes regression over five folds, then write its folder: `python models/diabetes/train.py [folder]`.

The network gives a mean and a log-variance (Kendall & Gal 2017). Width, rate, epochs and decay were chosen by
cross-validation inside the first fold's training part, which has the other folds' test rows in it. The first fold's
test rows, a fifth, are the held-out ones: its network is the one that is served. The constant-variance model has the
same means, those of the passes, and one variance for all rows: the mean square of the training rows' residuals from
their own means of the passes.
"""

import csv
import json
import sys
from collections import OrderedDict
from math import pi
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import KFold
from torch import Tensor, nn

from service import Predictor
from service.signature import Input, Output, Task

FEATURES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
UNITS = ("years", "1 or 2", "kg/m²", "mmHg", "mg/dL", "mg/dL", "mg/dL", "ratio", "ln(mg/dL)", "mg/dL")
EPOCHS, BATCH, RATE, DECAY = 40, 32, 1e-3, 6e-2
COLUMNS = ("rmse", "log_likelihood", "log_likelihood_constant_variance")
DESCRIPTION = (
    "Progression of diabetes one year after baseline, from scikit-learn's load_diabetes(scaled=False): age, sex, body "
    "mass index, blood pressure and six serum measurements (total cholesterol, LDL, HDL, total / HDL, log "
    "triglycerides, glucose)."
)


def load() -> tuple[Tensor, Tensor]:
    """Return all features [442, 10] and targets [442, 1] in the user's units."""
    data = load_diabetes(scaled=False)
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target, dtype=torch.float32)[:, None]


def folds() -> list[tuple[Tensor, Tensor]]:
    """Return the five folds as row indices: training, then test."""
    splits = KFold(5, shuffle=True, random_state=0).split(load()[0])
    return [(torch.tensor(train), torch.tensor(test)) for train, test in splits]


def held_out() -> tuple[Tensor, Tensor]:
    """Return the features [89, 10] and targets [89, 1] that the served network has not seen."""
    x, y = load()
    _, test = folds()[0]
    return x[test], y[test]


def network() -> nn.Module:
    """Return the network before training: standardised features [B, 10] to mean and log-variance [B, 2]."""
    layers: list[tuple[str, nn.Module]] = [
        ("hidden", nn.Linear(10, 100)),
        ("relu", nn.ReLU()),
        ("drop", nn.Dropout(0.2)),
        ("mean_and_log_variance", nn.Linear(100, 2)),
    ]
    return nn.Sequential(OrderedDict(layers))


def fit(x: Tensor, y: Tensor) -> Predictor:
    """Train on features [B, 10] and targets [B, 1] in the user's units; the predictor takes and gives these units."""
    torch.manual_seed(0)
    (mean, std), (shift, scale) = (x.mean(0), x.std(0)), (y.mean(), y.std())
    z, target, module = (x - mean) / std, (y - shift) / scale, network()
    optimizer = torch.optim.Adam(module.parameters(), RATE, weight_decay=DECAY)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            optimizer.zero_grad()
            predicted, log_variance = module(z[rows]).tensor_split(2, -1)
            loss = (-log_variance).exp() * (target[rows] - predicted).square() + log_variance  # Kendall & Gal, eq. 8
            (loss.mean() / 2).backward()
            optimizer.step()
    inputs = [Input("patient", "float32", (10,), FEATURES, UNITS, tuple(mean.tolist()), tuple(std.tolist()))]
    outputs = [Output("progression", Task.GAUSSIAN, (2,), scale=scale.item(), shift=shift.item(), unit="score")]
    return Predictor.capture(module, z[:2], inputs=inputs, outputs=outputs)


def log_likelihood(y: Tensor, mean: Tensor, variance: Tensor) -> float:
    """Return the mean over rows of log N(y; mean, variance), in nats."""
    return float(-((2 * pi * variance).log() + (y - mean).square() / variance).mean() / 2)


def run_fold(fold: int) -> tuple[Predictor, tuple[float, ...]]:
    """Train on a fold's training rows and return the predictor with its test rows' figures of `COLUMNS`."""
    (x, y), (train, test) = load(), folds()[fold]
    predictor = fit(x[train], y[train])
    residuals = y[train] - predictor.predict(x[train]).outputs["progression"]["mean"]
    answer = predictor.predict(x[test]).outputs["progression"]
    rmse = float((y[test] - answer["mean"]).square().mean().sqrt())
    variances = answer["total_variance"], residuals.square().mean()
    return predictor, (rmse, *(log_likelihood(y[test], answer["mean"], variance) for variance in variances))


def main(folder: Path) -> None:
    """Print the table of folds, then write the folder's next version, `example.json` and `example.csv`."""
    torch.set_num_threads(1)
    runs = [run_fold(fold) for fold in range(5)]
    figures = torch.tensor([found for _, found in runs], dtype=torch.float64)
    print("fold", *COLUMNS)
    for name, row in (*enumerate(figures), ("mean", figures.mean(0)), ("s.d.", figures.std(0))):
        print(f"{name:>4}", *(f"{value:{len(column)}.3f}" for value, column in zip(row, COLUMNS, strict=True)))
    over_folds = {f"{name}_folds": round(float(value), 4) for name, value in zip(COLUMNS, figures.mean(0), strict=True)}
    own = {name: round(value, 4) for name, value in zip(COLUMNS, runs[0][1], strict=True)}
    print(runs[0][0].save(folder, description=DESCRIPTION, score=own | over_folds))
    rows = [[round(value, 4) for value in row] for row in held_out()[0][:10].tolist()]
    example = {"model": folder.resolve().name, "inputs": rows[:2]}
    (folder / "example.json").write_text(json.dumps(example) + "\n")
    with (folder / "example.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([FEATURES, *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
