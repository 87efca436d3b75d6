"""A compiled caller, wrk: as many connections as are asked for, each asking again once it is answered.

It does not know what is answered, beyond the status.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("post.lua")
MISSING = "wrk is not installed; on Debian: apt-get install wrk"


@dataclass(frozen=True)
class Measured:
    """What one run of wrk saw.

    Attributes:
        per_s: Requests a second.
        p50_ms: The median time of an answer.
        p99_ms: The time that 99 of 100 answers are in.
        others: Answers that were no 200, and errors.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    others: int


def measure(url: str, body: Path, clients: int, seconds: float) -> Measured:
    """Ask a URL the same question for some seconds."""
    assert shutil.which("wrk"), MISSING
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "--timeout", "60s", "-s", str(SCRIPT), url]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "BODY": str(body)}, timeout=seconds + 90
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return Measured(found["requests"] / found["seconds"], found["p50_ms"], found["p99_ms"], found["others"])
