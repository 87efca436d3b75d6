"""No dependency that we ask for has a hole that is known: our lower bounds, and pip-audit where it can run."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
FIXED = {  # package: the first release without it, and what it was
    "h11": ("0.16", "CVE-2025-43859: chunks that a proxy reads otherwise"),
    "starlette": ("0.49.1", "CVE-2025-62727: time squared in a Range header"),
    "torch": ("2.10", "CVE-2026-24747: code in weights that are only loaded"),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_lower_bound_is_above_every_release_with_a_hole(name: str) -> None:
    asked = next(found for found in map(Requirement, PROJECT["dependencies"]) if found.name == name)
    version, hole = FIXED[name]
    lowest = [Version(each.version) for each in asked.specifier if each.operator == ">="]
    assert lowest, f"{name} needs a lower bound"
    assert lowest[0] >= Version(version), hole


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_every_dependency_has_a_lower_bound(text: str) -> None:
    assert any(each.operator == ">=" for each in Requirement(text).specifier)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pip_audit") is None, reason="pip install -e '.[audit]'")
def test_pip_audit_knows_of_no_hole() -> None:
    """Where its service is not reached it calls every package unknown, and succeeds: that is no audit."""
    options = ("--local", "--skip-editable", "--progress-spinner", "off", "--format", "json")
    done = subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True, timeout=300)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        pytest.skip(f"pip-audit did not run: {done.stderr[-200:]}")
    known = [each for each in found if "skip_reason" not in each]
    if len(known) < len(found) / 2:
        pytest.skip("the service that knows of holes is not reached")
    assert {each["name"]: each["vulns"] for each in known if each["vulns"]} == {}
