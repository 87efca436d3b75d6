"""Score a table with a predictor of this process; it does not know files."""

import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from service.scoring.table import BLOCK_ROWS, ScoreBlock, Summary, score_table

if TYPE_CHECKING:
    from service.plan import Override
    from service.predictor import Predictor

Seed = int | None | Literal["default"]


def score_locally(
    predictor: "Predictor",
    source: Path,
    target: Path,
    *,
    passes: int | None = None,
    variant: str | None = None,
    p: float | None = None,
    sites: Mapping[str, "Override"] | None = None,
    seed: Seed = "default",
    scope: str = "pass",
    estimator: str = "sampled",
    tolerance: float | None = None,
    precision: str = "float32",
    quantities: Sequence[str] | None = None,
) -> Summary:
    """Score a CSV file; each row's answer is what one `predict` call with all rows would give.

    A network that couples its rows gets all of them at once.

    Args:
        predictor: What answers.
        source: The rows, as `score_table` reads them.
        target: Where the result goes.
        passes: As in `Predictor.predict`, like all that follow.
        variant: The whole plan's variant.
        p: The whole plan's drop rate.
        sites: Overrides by site.
        seed: The noise's seed, one for the whole file; None draws a fresh one.
        scope: `pass` or `row`.
        estimator: `sampled` or `integrated`.
        tolerance: The relative error of a row's variances at which its passes end.
        precision: What products run in.
        quantities: What to compute besides the task's defaults.

    Raises:
        InvalidInput: With line and column, or what is wrong with the files.
        BadRequest: What is asked for does not fit the model.
    """
    asked: dict[str, Any] = {"passes": passes, "variant": variant, "p": p, "sites": sites, "scope": scope}
    asked |= {"estimator": estimator, "tolerance": tolerance, "precision": precision, "quantities": quantities}
    asked["seed"] = secrets.randbits(53) if seed is None else seed
    block_rows = sys.maxsize if predictor.couples_rows else BLOCK_ROWS
    return score_table(source, target, _scorer(predictor, asked), predictor.inputs, predictor.outputs, block_rows)


def _scorer(predictor: "Predictor", asked: Mapping[str, Any]) -> ScoreBlock:
    def score(rows: NDArray[Any], first_row: int) -> dict[str, dict[str, NDArray[Any]]]:
        prediction = predictor.predict({predictor.inputs[0].name: rows}, row_offset=first_row, **asked)
        return {
            output: {name: values.numpy() for name, values in quantities.items()}
            for output, quantities in prediction.outputs.items()
        }

    return score
