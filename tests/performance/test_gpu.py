"""The GPU's measurements run without one, and what they measure is right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

ROOT = Path(__file__).parents[2]
KERNELS, WORKLOADS = 16, 4
NAMES = ("exact masks", "sampled inference", "bernoulli after", "gaussian after", "alpha after", "grouped")


def test_the_measuring_script_runs_end_to_end_in_the_interpreter() -> None:
    command = [sys.executable, "tests/performance/gpu.py", "--device", "cpu", "--small", "--rounds", "1"]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )

    assert ran.returncode == 0, ran.stderr
    cells = [line.strip("| ").split(" | ") for line in ran.stdout.splitlines() if line.startswith("| ")]
    errors = [float(each[-1]) for each in cells if each[0].startswith(NAMES)]
    compared = [each for each in cells if each[0].startswith(("MLP", "DropConnect"))]
    assert len(errors) == KERNELS
    assert max(errors) < 1e-5
    assert len(compared) == WORKLOADS
    assert not any(fault in " ".join(each) for each in compared for fault in ("wrong", "off", "variance"))
    assert "GB/s copied" in ran.stdout
