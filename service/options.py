"""How passes are asked for on a command line, the same for every command; it does not know what a command does."""

from typing import Annotated, Any

import typer

DEVICES = "Where networks run: auto (a GPU where there is one), cpu, cuda, cuda:1, …"
Device = Annotated[str, typer.Option(help=DEVICES)]
Passes = Annotated[int | None, typer.Option(help="Stochastic passes, 2 to 10000; the model's own if left out.")]
VariantName = Annotated[str | None, typer.Option(help="'trained', or a variant for the whole plan.")]
Rate = Annotated[float | None, typer.Option("--p", help="A drop rate for the whole plan.")]
Seed = Annotated[int | None, typer.Option(help="The noise's seed; the model's own if left out.")]
Scope = Annotated[str, typer.Option(help="'pass': one pass is one network for all rows; 'row': each row has its own.")]
Precision = Annotated[str, typer.Option(help="What products run in: float32; coarser: bfloat16, or tf32 on a GPU.")]
Estimator = Annotated[str, typer.Option(help="'integrated': the last site before a linear output exactly.")]
Tolerance = Annotated[float | None, typer.Option(help="End a row's passes at this relative error of its variances.")]
Quantities = Annotated[list[str] | None, typer.Option("--quantity", help="One more quantity; may be given again.")]
Version = Annotated[int | None, typer.Option(help="The model's version; the highest if left out.")]


def asked(
    passes: int | None,
    variant: str | None,
    p: float | None,
    seed: int | None,
    scope: str,
    estimator: str,
    tolerance: float | None,
    precision: str,
    quantities: list[str] | None,
) -> dict[str, Any]:
    """Return options as `Predictor.predict` takes them; a seed that was left out is not there."""
    told: dict[str, Any] = {"passes": passes, "variant": variant, "p": p, "scope": scope}
    told |= {"estimator": estimator, "tolerance": tolerance, "precision": precision, "quantities": quantities}
    return told | ({} if seed is None else {"seed": seed})
