"""A run that is killed and resumed, or split over processes, is the run that it would have been."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loom.checkpoint import Checkpoints
from loom.record import read_records

SCRIPT = Path(__file__).parent / "killed_training.py"
LIGHT = (
    "data.extra_poses=0",
    "train.rays=64",
    "feature_pipeline.rays=8",
    "checkpoint_interval=5",
    "evaluation.interval=10",
    "prune.at=[0.3,0.6]",
    "prune.window=20",
    "train.ema_decay=0.9",
)


TWO_PROCESSES = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


def launch(
    *arguments: str | Path, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the script with one thread."""
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1800,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )


def script(*arguments: str | Path, launcher: tuple[str, ...] = ()) -> str:
    """Run the script with one thread; return what it printed."""
    done = launch(*arguments, launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def final_state(run: Path) -> dict:
    loaded = Checkpoints(run / "checkpoints").load_newest()
    assert loaded is not None
    return {"step": loaded.step, **loaded.state}


def leaves(value: object, place: str = "") -> dict[str, object]:
    """Return every leaf of a state by its place."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {place: value}
    found: dict[str, object] = {}
    for key, item in parts:
        found |= leaves(item, f"{place}/{key}")
    return found


def differing(left: dict, right: dict) -> list[str]:
    """Return the places at which two states are not bit-equal; times and rates of work aside."""
    a, b = leaves(left), leaves(right)
    timed = re.compile("/(perf|time|throughput)")

    def same(x: object, y: object) -> bool:
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return torch.equal(x, y)
        return x == y

    return [
        place
        for place in sorted(a.keys() | b.keys())
        if not timed.search(place) and not same(a.get(place), b.get(place))
    ]


def untimed(run: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")}
        for row in read_records(run)
    ]


def require_equal_after_kills(folder: Path, settings: tuple[str, ...], kills: int) -> str:
    said = script("kill", folder, kills, 20, *settings)
    assert f"killed {kills};" in said, said
    assert differing(final_state(folder / "whole"), final_state(folder / "killed")) == []
    assert untimed(folder / "whole") == untimed(folder / "killed")
    spent = [row["perf/cpu_s"] for row in read_records(folder / "killed") if "perf/cpu_s" in row]
    assert len(spent) >= 8
    assert spent == sorted(spent)  # the seconds of the killed processes count too
    facts = json.loads((folder / "killed" / "run.json").read_text(encoding="utf-8"))
    assert len(facts["resumes"]) >= kills // 2  # a start that is killed early leaves no trace
    return said


def test_a_run_killed_three_times_ends_with_the_bits_of_an_uninterrupted_one(tiny, tmp_path):
    settings = (*tiny.settings, *LIGHT, "train.max_steps=80", "log_interval=10")
    require_equal_after_kills(tmp_path, settings, kills=3)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_bits_of_an_uninterrupted_one(tiny, tmp_path):
    settings = (*tiny.settings, *LIGHT, "train.max_steps=400", "log_interval=10")
    print(require_equal_after_kills(tmp_path, settings, kills=20))


@pytest.mark.dist
def test_two_processes_take_the_steps_rates_and_rays_of_one(tiny, tmp_path):
    settings = (*tiny.settings, *LIGHT, "train.max_steps=60", "log_interval=1", "prune.at=[0.5]")
    for name, prefix in (("one", ()), ("two", TWO_PROCESSES)):
        (tmp_path / name).mkdir()
        place = tmp_path / name
        script("observe", place, *settings, "--run-dir", place / "run", launcher=prefix)
    one, two = tmp_path / "one", tmp_path / "two"

    rates = [
        [(row["step"], row["lr/student"], row["lr/projector"]) for row in read_records(p / "run")]
        for p in (one, two)
    ]
    assert rates[0] == rates[1]
    assert [step for step, *_ in rates[0]] == list(range(1, 61))

    alone = torch.load(one / "seen_0.pt", weights_only=True)
    pair = [torch.load(two / f"seen_{rank}.pt", weights_only=True) for rank in range(2)]
    whole, parts = alone["rays"], [seen["rays"] for seen in pair]
    image_steps = range(8, 60)  # the phase before them draws points
    for step in image_steps:
        rank, world, rays = whole[step]
        assert (rank, world) == (0, 1)
        both = torch.empty_like(rays)
        for rank, part in enumerate(parts):
            assert part[step][:2] == (rank, 2)
            both[rank::2] = part[step][2]
        assert torch.equal(both, rays), f"step {step}"

    assert torch.equal(pair[0]["occupancy"], pair[1]["occupancy"])
    ours, theirs = (final_state(place / "run") for place in (two, one))
    assert ours["step"] == theirs["step"] == 60
    for name, limit in (("weights", 0.03), ("head", 0.15)):  # means over halves of masked rays
        ours_there, there = ours["model"][name], theirs["model"][name]
        assert (ours_there - there).norm() < limit * there.norm(), name
    last = [read_records(place / "run")[-1]["metric/psnr_db"] for place in (one, two)]
    assert last[0] == pytest.approx(last[1], abs=0.2)


@pytest.mark.dist
def test_a_process_that_missed_a_gate_waits_for_the_judgement_and_page_of_the_first(tiny, tmp_path):
    """Torchrun ends all processes when one has failed, also the first in its judgement."""
    run = tmp_path / "run"
    gate = "gates=[{metric: metric/psnr_db, op: '>=', threshold: 99}]"
    settings = (*tiny.settings, *LIGHT, "train.max_steps=20", "prune.at=[]", gate)
    done = launch("tarry", "8", *settings, "--run-dir", run, launcher=TWO_PROCESSES)
    assert done.returncode != 0
    assert "is not >= 99" in done.stderr
    assert (run / "evaluation" / "student_against_teacher.json").is_file(), done.stderr
    assert "This run missed a gate" in (run / "report.html").read_text(encoding="utf-8")
