"""KServe's own Python client, unchanged, against a running server.

It needs more packages than thinnet itself, so it lives in an environment of its own: made here, or named in
`KSERVE_PYTHON`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

CALLS = Path(__file__).with_name("kserve_calls.py")
ROWS = [[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    if "KSERVE_PYTHON" in os.environ:
        return os.environ["KSERVE_PYTHON"]
    place = tmp_path_factory.mktemp("kserve")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    own = str(place / "bin" / "python")
    subprocess.run([own, "-m", "pip", "install", "--quiet", "kserve>=0.15"], check=True)
    return own


@pytest.mark.slow
def test_kserves_client_reads_health_answers_and_errors(python: str, address: str) -> None:
    done = subprocess.run([python, str(CALLS), address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ours = httpx2.post(f"{address}/predict", json={"model": "line", "inputs": ROWS, "passes": 20, "seed": 3}).json()

    assert [told[name] for name in ("live", "ready", "model ready")] == [True, True, True]
    for form in ("json", "binary"):
        assert (told[f"{form} id"], told[f"{form} model"]) == ("seven", "line")
        for name in ("mean", "variance"):
            assert told[form][name] == [pytest.approx(row, rel=1e-6) for row in ours[name]]
    assert "there is no model 'nobody'" in told["error"]
