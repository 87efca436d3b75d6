"""The README's tables, made from the code: `python tests/docs/tables.py` writes them, a test checks them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import typer.main

from service.catalogue import describe_variants
from service.cli import app as commands
from service.settings import CallerSettings, Settings

README = Path(__file__).parents[2] / "README.md"


def variants() -> Iterator[str]:
    yield "| variant | one pass | shared over | mean | variance | train with | reference |"
    yield "|---|---|---|---|---|---|---|"
    for each in describe_variants():
        cells = [each[key] for key in ("equation", "shared", "mean", "variance")]
        cells += [", ".join(each["layers"]) or "-", each["reference"]]
        yield f"| `{each['name']}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def settings() -> Iterator[str]:
    yield "| variable | default | what it is |"
    yield "|---|---|---|"
    for name, field in {**Settings.model_fields, **CallerSettings.model_fields}.items():
        default = "empty" if field.default in (None, "") else f"`{field.default}`"
        yield f"| `THINNET_{name.upper()}` | {default} | {field.description} |"


def cli() -> Iterator[str]:
    yield "| command | what it does |"
    yield "|---|---|"
    for name, command in typer.main.get_command(commands).commands.items():  # type: ignore[attr-defined] # a group
        yield f"| `thinnet {name}` | {(command.help or '').splitlines()[0]} |"


def routes() -> Iterator[str]:
    from service.api.limits import router as limits_router
    from service.api.open_inference import router as open_inference
    from service.api.ops import router as operations
    from service.api.predict import router as ours

    yield "| route | what it answers |"
    yield "|---|---|"
    for route in [*ours.routes, *limits_router.routes, *operations.routes, *open_inference.routes]:
        if getattr(route, "include_in_schema", False):
            method = next(iter(route.methods))  # type: ignore[attr-defined] # an API route
            yield f"| `{method} {route.path}` | {route.summary} |"  # type: ignore[attr-defined] # the same


def metrics() -> Iterator[str]:
    from service.api.metrics import FIGURES

    yield "| metric | kind | labels | what it is |"
    yield "|---|---|---|---|"
    for name, figure in FIGURES.items():
        labels = ", ".join(f"`{label}`" for label in figure.labels) or "-"
        yield f"| `{name}` | {figure.kind} | {labels} | {figure.help.replace('|', chr(92) + '|')} |"


def limits() -> Iterator[str]:
    from service.api.limits import limits_of

    yield "| limit | default | unit | what it bounds |"
    yield "|---|---|---|---|"
    for name, each in limits_of(Settings.model_construct()).items():
        yield f"| `{name}` | {each['value']} | {each['unit']} | {each['what']} |"


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "variants": variants,
    "settings": settings,
    "commands": cli,
    "routes": routes,
    "metrics": metrics,
    "limits": limits,
}


def with_tables(text: str) -> str:
    """Return a text with every table between its markers made anew."""
    for name, rows in TABLES.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda match, rows=rows: match[1] + "\n".join(rows()) + "\n" + match[2],  # type: ignore[misc] # bound now
            text,
            flags=re.DOTALL,
        )
        assert count == 1, f"README.md needs one table {name}"
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
