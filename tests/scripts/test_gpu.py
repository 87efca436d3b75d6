"""The GPU's measurements run without one, and what they measure is right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

ROOT = Path(__file__).parents[2]
KERNELS, WORKLOADS, LINES = 16, 6, 10
NAMES = ("exact masks", "sampled inference", "bernoulli after", "gaussian after", "alpha after", "grouped")


def test_the_measuring_script_runs_end_to_end_in_the_interpreter() -> None:
    command = [sys.executable, "tests/performance/gpu.py", "--device", "cpu", "--small", "--rounds", "1"]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )

    assert ran.returncode == 0, ran.stderr
    cells = [line.strip("| ").split(" | ") for line in ran.stdout.splitlines() if line.startswith("| ")]
    errors = [float(each[-1]) for each in cells if each[0].startswith(NAMES)]
    networks = [each for each in cells if each[0].startswith(("MLP", "Conv", "Trans", "LSTM", "DropConnect"))]
    compared = [each for each in networks if each[2] == "20"]
    coarse = [each for each in networks if each[2] == "bfloat16"]
    served = [each for each in cells if each[0] == "LeNet"]
    assert len(errors) == KERNELS
    assert max(errors) < 1e-5
    assert len(compared) == LINES
    assert [each[0] for each in coarse] == list(dict.fromkeys(each[0] for each in compared))
    assert len(coarse) == WORKLOADS
    assert served or "No server was measured: wrk" in ran.stdout
    assert all(float(each[3]) > 0 and each[6] == "0" for each in served)
    assert [each for each in compared if any(fault in " ".join(each) for fault in ("wrong", "off", "variance"))] == []
    assert "GB/s copied" in ran.stdout
