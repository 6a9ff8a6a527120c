"""The processors that a process may use are those of its affinity within its group's quota."""

import os
from pathlib import Path

import pytest
from loom import processors
from loom.processors import usable_processors

V2, V1 = "0::/pod/app\n", "12:cpuset:/\n4:cpu,cpuacct:/docker/f00\n0::/\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that makes a machine of 8 processors with these files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(processors, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(processors, "MEMBERSHIP", tmp_path / "membership")

    def make(membership: str, files: dict[str, str]) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path: Path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (V2, {}, 8),
        (V2, {"pod/app/cpu.max": "max 100000\n"}, 8),
        (V2, {"pod/app/cpu.max": "200000 100000\n"}, 2),
        (V2, {"pod/app/cpu.max": "150000 100000\n"}, 2),
        (V2, {"pod/app/cpu.max": "1000 100000\n"}, 1),
        (V2, {"pod/app/cpu.max": "1600000 100000\n"}, 8),
        (V2, {"pod/app/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/../elsewhere\n", {"cpu.max": "400000 100000\n"}, 4),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        (
            V1,
            {
                "cpu/docker/f00/cpu.cfs_quota_us": "100000\n",
                "cpu/docker/f00/cpu.cfs_period_us": "50000\n",
            },
            2,
        ),
        (V2, {"pod/app/cpu.max": "much\n"}, 8),
        (V2, {"pod/app/cpu.max": "100000 0\n"}, 8),
        ("nonsense\n\n", {}, 8),
    ],
)
def test_the_quota_of_a_group_or_one_above_it_bounds_the_processors(
    machine, membership, files, expected
):
    machine(membership, files)
    assert usable_processors() == expected


def test_without_affinity_and_groups_the_machine_counts(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_processors() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_processors() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_that_is_bound_to_one_processor_may_use_one():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_processors() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_processors() <= len(before)
