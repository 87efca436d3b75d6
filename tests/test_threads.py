"""Threads follow the quota: of this cgroup and those above it, of either version, never below one."""

import os
from pathlib import Path

import pytest

from service.threads import threads_each, usable_cpus

CPUS = len(os.sched_getaffinity(0))


def cgroups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


def usable(root: Path, membership: str, files: dict[str, str]) -> int:
    (root / "membership").write_text(membership)
    return usable_cpus(cgroups(root, files), root / "membership")


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}),
        ("0::/\n", {"cpu.max": "150000 100000\n"}),
        ("0::/\n", {"cpu.max": "50000 100000\n"}),
        ("0::/pod/web\n", {"pod/cpu.max": "100000 100000\n", "pod/web/cpu.max": "max 100000\n"}),
        ("0::/not/here\n", {"cpu.max": "100000 100000\n"}),
        (
            "3:cpuset:/\n2:cpu,cpuacct:/pod\n",
            {"cpu/pod/cpu.cfs_quota_us": "100000\n", "cpu/pod/cpu.cfs_period_us": "100000\n"},
        ),
    ],
)
def test_a_quota_of_one_processor_is_one(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    assert usable(tmp_path, membership, files) == 1


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}),
        ("0::/\n", {}),
        ("0::/\n", {"cpu.max": "nonsense"}),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}),
        ("", {}),
    ],
)
def test_without_a_quota_the_affinity_holds(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    assert usable(tmp_path, membership, files) == CPUS


def test_the_affinity_holds_below_the_quota(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable(tmp_path, "0::/\n", {"cpu.max": "6400000 100000\n"}) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("workers", "cpus", "threads"), [(1, 1, 1), (1, 8, 8), (2, 8, 4), (3, 8, 2), (8, 8, 1), (9, 8, 1)]
)
def test_workers_share_the_processors(monkeypatch: pytest.MonkeyPatch, workers: int, cpus: int, threads: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_each(workers, 0, cpus) == threads


def test_what_is_asked_for_holds_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_each(1, 0, 8) == 3
    assert threads_each(1, 5, 8) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "nonsense")
    assert threads_each(1, 0, 8) == 8
