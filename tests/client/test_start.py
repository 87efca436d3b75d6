"""The client starts without torch: it is for callers who have only numbers and an address."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "pandas", "pyarrow", "pydantic", "fastapi", "ray", "rich", "numpy", "asyncio")
IMPORTED = "from service.client import Client"
BOTH = "from service.client import AsyncClient, Client"
MADE = "from service.client import Client; Client('http://127.0.0.1:1').close()"


def _started(script: str, heavy: tuple[str, ...]) -> tuple[float, list[str]]:
    """Return the processor time (seconds) of a script, and which modules it brought of those that it should not."""
    whole = (
        f"import sys, time; started = time.process_time(); {script}\n"
        f"print(time.process_time() - started, *(name for name in {heavy} if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    seconds, *found = done.stdout.split()
    return float(seconds), found


@pytest.mark.parametrize(
    ("script", "most_s", "needed"),
    [
        pytest.param(IMPORTED, 0.25, (), id="imported"),
        pytest.param(BOTH, 0.25, ("asyncio",), id="both imported"),
        pytest.param(MADE, 0.5, (), id="made"),
    ],
)
def test_the_client_starts_quickly_and_without_what_it_may_not_need(
    script: str, most_s: float, needed: tuple[str, ...]
) -> None:
    """The fastest of three in processor time, which others on the machine lengthen little; torch takes over a second.

    The library for HTTP comes with a client that is made, NumPy with the first rows, an event loop with `predict_many`.
    """
    unneeded = tuple(name for name in HEAVY if name not in needed)
    times, heavy = zip(*(_started(script, unneeded) for _ in range(3)), strict=True)
    assert heavy == ([], [], [])
    assert min(times) < most_s


def test_every_name_that_the_client_exports_is_there() -> None:
    script = "import service.client as client; print(*(getattr(client, name).__name__ for name in client.__all__))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = ["AsyncClient", "Client", "Health", "InputTensor", "Limit", "Limits", "Model", "OutputTask", "Prediction"]
    assert done.stdout.split() == [*names, "Site"]
