"""The command line: thinnet serve, predict, score, export, models, variants, doctor; it parses, delegates and prints.

Commands import what they need when they run, so that `--help` does not wait for torch.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from service import __version__, options
from service.errors import ThinnetError
from service.interrupt import INTERRUPTED
from service.score_command import score
from service.settings import Settings

app = typer.Typer(
    name="thinnet",
    help="Mean and variance of a trained network's stochastic passes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_DEFAULTS = Settings.model_fields
Models = Annotated[
    Path | None, typer.Argument(help="Folder of model folders, or one model folder; ./models if left out.")
]


def main() -> None:
    """Run the command line; a fault that thinnet names is one line on standard error and exit code 1."""
    try:
        app()
    except ThinnetError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def _version(asked: bool) -> None:
    if asked:
        print(f"thinnet {__version__}")
        raise typer.Exit


@app.callback()
def _callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def serve(
    models: Models = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 if left out.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 8000 if left out.")] = None,
    device: Annotated[str | None, typer.Option(help=options.DEVICES)] = None,
    root_path: Annotated[str | None, typer.Option(help="Path that a proxy in front strips.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve; 1 if left out.")] = None,
    engine: Annotated[str | None, typer.Option(help="'local', or 'ray': replicas in Ray Serve.")] = None,
    min_replicas: Annotated[int | None, typer.Option(help="Fewest replicas in Ray; 1 if left out.")] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Most replicas in Ray; as many as the fewest if left out.")
    ] = None,
    keys_file: Annotated[Path | None, typer.Option(help="File of API keys, as `thinnet key` prints them.")] = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="Serve a public address without keys.")
    ] = None,
) -> None:
    """Serve a folder of models over HTTP; other settings come from THINNET_… in the environment.

    Exit codes: 0 after SIGTERM or SIGINT, once what was accepted is answered; 1 where it cannot start; 128 and the
    signal's number after a second SIGTERM or SIGINT, which ends at once. SIGHUP reads the models again.
    """
    from service.start import prepared

    given = {"models": models, "host": host, "port": port, "device": device, "root_path": root_path, "workers": workers}
    given |= {"engine": engine, "min_replicas": min_replicas, "max_replicas": max_replicas}
    given |= {"keys_file": keys_file, "allow_anonymous": allow_anonymous}
    settings = _settings({key: value for key, value in given.items() if value is not None})
    with prepared():
        if settings.engine == "ray":
            from service.cluster.serving import run
        else:
            from service.api.server import run  # only now: signals and threads are settled before torch is imported
        code = run(settings)
    raise typer.Exit(code)


def _settings(given: dict[str, Any]) -> Settings:
    from pydantic import ValidationError

    from service.wire import first_problem

    try:
        return Settings(**given)
    except ValidationError as error:
        _fail(f"settings: {first_problem(error.errors(), _DEFAULTS)}")


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    cost_per_minute: Annotated[
        float | None, typer.Option(help="Seconds of compute a minute; as much as there is if left out.")
    ] = None,
) -> None:
    """Make an API key, shown once, and its line for the file of keys, which holds no more than its hash."""
    from service.api.keys import make_key

    made, line = make_key(name, cost_per_minute)
    print(f"key   {made}\nline  {line}")


@app.command()
def models(models: Models = None, device: options.Device = "auto") -> None:
    """List the models of a folder, their versions and their sites."""
    from service.repository import Repository

    repository = Repository(models or Path("models"), device)
    for name in repository.names():
        if name in repository.faults:
            continue
        card, predictor = repository.card(name), repository.predictor(name)
        print(f"{name} (versions {', '.join(map(str, card.versions))}): {card.description or 'no description'}")
        width = max((len(site.name) for site in predictor.sites), default=0)
        for site in predictor.sites:
            trained = site.trained_as or "off"
            fits = ", ".join(predictor.fitting(site.name))
            print(f"  {site.name:{width}}  {site.kind} {list(site.shape)}, as trained {trained}; fits: {fits}")
    for name, fault in repository.faults.items():
        print(f"cannot serve {name}: {fault}", file=sys.stderr)


@app.command()
def variants(device: options.Device = "auto") -> None:
    """List every dropout variant: equation, what is sampled and shared, closed forms, layers, reference."""
    from rich.console import Console
    from rich.table import Table

    from service.catalogue import describe_variants

    console = Console()
    for each in describe_variants():
        table = Table(box=None, show_header=False, title=each["name"], title_justify="left")
        parameters = ", ".join(f"{name} = {value:g}" for name, value in each["parameters"].items())
        for key in ("equation", "sampled", "shared", "mean", "variance"):
            table.add_row(key, str(each[key]))
        table.add_row("parameters", parameters)
        table.add_row("sites", ", ".join(each["sites"]))
        table.add_row("train with", ", ".join(each["layers"]) or "the layer that it stands in for")
        table.add_row("reference", each["reference"])
        console.print(table, "")


@app.command()
def doctor(models: Models = None, device: options.Device = "auto") -> None:
    """Say what this machine has, where networks run, and which way the passes of each model take, and why."""
    from service.doctor import findings

    for what, found in findings(models or Path("models"), device):
        print(f"{what:20} {found}")


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="The model's folder.")],
    rows: Annotated[Path, typer.Argument(help="A file of rows: .json, .csv or .npy.")],
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
) -> None:
    """Predict one file of rows with a model folder, without a server; the answer is printed as JSON."""
    import orjson

    from service.answer import answer
    from service.folder import read_card
    from service.predictor import Predictor
    from service.repository import check_device
    from service.scoring.whole_rows import read_rows_file

    predictor = Predictor.load(folder, version, check_device(device))
    given = read_rows_file(rows, predictor.inputs)
    prediction = predictor.predict(
        given, **options.asked(passes, variant, p, seed, scope, estimator, tolerance, precision, quantity)
    )
    card = read_card(folder, version)
    told = answer(card.name, card.version, predictor.outputs, prediction)
    print(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY).decode())


app.command()(score)


@app.command()
def export(
    factory: Annotated[str, typer.Argument(help="What makes the network: package.module:factory.")],
    folder: Annotated[Path, typer.Argument(help="The model's folder, such as models/mine.")],
    example: Annotated[
        list[str], typer.Option(help="An input's row: [name:][dtype:]shape, such as 3x32x32; one each.")
    ],
    weights: Annotated[Path | None, typer.Option(help="A file of weights: .safetensors, .pth, .pt or .ckpt.")] = None,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Export the factory's own weights.")] = False,
    task: Annotated[str | None, typer.Option(help="classification, multilabel, regression or gaussian.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A class's name, in order; may be given again.")] = None,
    description: Annotated[str, typer.Option(help="What the model is, for people.")] = "",
    variant: Annotated[str, typer.Option(help="The variant where a request names none.")] = "trained",
    passes: options.Passes = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
) -> None:
    """Turn a network and its weights into a model folder, and say which sites were found."""
    from service.export import export_folder

    made = export_folder(
        factory,
        folder,
        example,
        weights,
        no_weights=no_weights,
        task=task,
        labels=label or (),
        description=description,
        variant=variant,
        passes=passes,
        seed=seed,
        device=device,
    )
    print(f"{made.folder}: {len(made.sites)} sites, {len(made.active)} of them random where a request names no plan")
    for site in made.sites:
        trained = site.trained_as or "off"
        print(f"  {site.name} ({site.kind}, {list(site.shape)}): {trained}")
    for note in made.notes:
        print(f"note: {note}")
