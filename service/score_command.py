"""`thinnet score`: it parses, picks an engine, shows how it goes, and says what was done."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, cast

import typer

from service import options
from service.errors import BadRequest, ThinnetError
from service.interrupt import INTERRUPTED, ends_on_interrupt, kept_interrupts
from service.scoring.engine import OpenEngine, Parameters
from service.scoring.objects import place_here, staged, uri_of
from service.scoring.progress import SILENT, Bar, Checked, Lines, Watch
from service.scoring.source import OpenTable, open_source
from service.scoring.table import OnError, Summary, score_table
from service.scoring.work_folder import place_of
from service.settings import caller_settings

LEFT_OUT = 3
_TOLD_EVERY_S = 10.0
ENGINES = ("local", "ray")
Way = tuple[OpenEngine, OpenTable]
"""What opens the engine, and what opens the table for it."""


def score(
    source: Annotated[
        Path, typer.Argument(help="CSV, Parquet, JSON Lines, Arrow, NumPy; a folder of Parquet or images.")
    ],
    output: Annotated[Path, typer.Option(help="Where the result goes, in the format that its name ends in.")],
    model: Annotated[str, typer.Option(help="The model's folder; with --url its name.")] = "",
    engine: Annotated[str, typer.Option(help="What answers: 'local', this process, or 'ray'.")] = "local",
    url: Annotated[str | None, typer.Option(help="A server that answers, instead of an engine.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with the key that the server is shown; else THINNET_API_KEY.")
    ] = None,
    version: options.Version = None,
    passes: options.Passes = None,
    variant: options.VariantName = None,
    p: options.Rate = None,
    seed: options.Seed = None,
    scope: options.Scope = "pass",
    estimator: options.Estimator = "sampled",
    tolerance: options.Tolerance = None,
    precision: options.Precision = "float32",
    quantity: options.Quantities = None,
    device: options.Device = "auto",
    on_error: Annotated[
        str, typer.Option(help="A bad row: 'fail' ends, 'skip' leaves it out, 'record' tells of it in a file besides.")
    ] = "fail",
    threshold: Annotated[
        float | None, typer.Option(help="Count rows of more entropy (classes) or deviation / mean than this.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", "--no-resume", help="Start anew instead of going on where a run stopped.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what goes wrong.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, on standard output.")] = False,
) -> None:
    """Score a table of any size: one row of mean, variance and quantities for each row, whole or not at all.

    The same command goes on where an earlier one stopped, whatever stopped it.

    Exit codes: 0 every row is scored; 1 refused, or it cannot go on; 2 options that cannot be read; 3 scored, and some
    rows were left out (--on-error skip, record); 130 interrupted, and what is done is kept.
    """
    asked = options.asked(passes, variant, p, seed, scope, estimator, tolerance, precision, quantity)
    watch = SILENT if quiet else _watch(threshold)
    summary = None
    try:
        if url is not None:
            _check_of_server(model, engine, device)
        way = _engine(engine, model, device) if url is None else _server(url, api_key_file, model, quiet)
        with staged(source, output) as (rows, result), way as (open_engine, open_table), kept_interrupts() as check:
            summary = score_table(
                rows,
                result,
                open_engine,
                Parameters(version=version, **asked),
                on_error=cast(OnError, on_error),
                restart=restart,
                threshold=threshold,
                watch=Checked(watch, check),
                open_table=open_table,
            )
    except KeyboardInterrupt:
        done = f"the result is whole: {summary.output}" if summary else "nothing was done yet"
        print(f"interrupted: {_kept(output) or done}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except ThinnetError as error:
        print(f"error: {error}", *filter(None, [_kept(output)]), sep="\nnote: ", file=sys.stderr)
        raise typer.Exit(1) from None
    _tell(replace(summary, output=uri_of(output) or str(output)), threshold, quiet, json)
    raise typer.Exit(LEFT_OUT if summary.left_out else 0)


def _kept(output: Path) -> str:
    is_kept = place_of(place_here(output)).exists()
    return "what is done is kept: the same command goes on, --restart throws it away" if is_kept else ""


def _check_of_server(model: str, engine: str, device: str) -> None:
    """Refuse what only an engine heeds."""
    if (engine, device) != ("local", "auto"):
        raise BadRequest("--url asks a server, which has its own engine and device; leave out --engine and --device")
    if "/" in model:
        raise BadRequest(
            f"{model} is a path; with --url give the model's name on the server, such as {Path(model).name}"
        )


def _server(url: str, api_key_file: Path | None, model: str, quiet: bool) -> AbstractContextManager[Way]:
    from service.scoring.remote import Server, open_server

    _tell_of_waits(quiet)
    return nullcontext((open_server(Server(url, caller_settings(api_key_file).key()), model or None), open_source))


@contextmanager
def _engine(engine: str, model: str, device: str) -> Iterator[Way]:
    folder = Path(model or "models")
    if engine == "ray":
        from service.cluster.scoring import ray_run

        with ray_run(folder, device) as run:
            yield run.open_engine, run.open_table
    elif engine == "local":
        from service.threads import prepare_environment

        prepare_environment()  # before torch is imported
        with ends_on_interrupt():
            from service.scoring.local import open_folder

        yield open_folder(folder, device), open_source
    else:
        raise BadRequest(f"there is no engine {engine!r}; give one of {', '.join(ENGINES)}, or --url")


def _tell_of_waits(quiet: bool) -> None:
    """Say now and then that a server is waited for, instead of the retrying library's lines for a service's log."""
    from stamina.instrumentation import RetryDetails, set_on_retry_hooks

    told_at = -_TOLD_EVERY_S

    def tell(details: RetryDetails) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _TOLD_EVERY_S:
            told_at = time.monotonic()
            print(f"waiting: {details.caused_by}", file=sys.stderr)

    set_on_retry_hooks(() if quiet else (tell,))


def _watch(threshold: float | None) -> Watch:
    return Bar(threshold) if sys.stderr.isatty() else Lines(threshold)


def _tell(summary: Summary, threshold: float | None, quiet: bool, json: bool) -> None:
    if json:
        import orjson

        print(orjson.dumps(asdict(summary)).decode())
    elif not quiet:
        print("\n".join(_lines(summary, threshold)))


def _lines(summary: Summary, threshold: float | None) -> list[str]:
    lines = [f"{_rows(summary.rows)} in {summary.seconds:.1f} s: {summary.output}"]
    if summary.found_done:
        lines.append(f"the first {summary.found_done} rows were done by an earlier run")
    if summary.left_out:
        place = f", told in {summary.errors}" if summary.errors else ""
        lines.append(f"left out, being at fault: {_rows(summary.left_out)}{place}")
    if summary.above is not None and summary.rows:
        share = summary.above / summary.rows
        lines.append(f"more uncertain than {threshold:g}: {_rows(summary.above)} ({share:.1%})")
    if summary.unfinite:
        lines.append(f"no finite mean and variance, so check the inputs: {_rows(summary.unfinite)}")
    return lines + [f"note: {note}" for note in summary.notes]


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
