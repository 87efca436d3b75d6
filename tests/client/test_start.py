"""The client starts without torch: it is for callers who have only numbers and an address."""

import subprocess
import sys

HEAVY = ("torch", "pandas", "pyarrow", "pydantic", "fastapi", "ray", "rich")


def test_the_client_starts_quickly_and_without_what_only_a_server_needs() -> None:
    """Its processor time is bounded, which others on the machine do not lengthen much; torch alone takes longer."""
    script = (
        "import sys, time; started = time.process_time()\n"
        "from service.client import AsyncClient, Client\n"
        "Client('http://127.0.0.1:1').close()\n"
        f"print(time.process_time() - started, *(name for name in {HEAVY} if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 1.0
