"""An export in jobs has the bytes of one in one process, whatever order and kills it saw."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from end2race.cache import export
from end2race.cache.store import TeacherCache
from end2race.cache.store import repair as repair_cache
from end2race.export_jobs import export_shards, export_with_jobs
from end2race.exporting import ExportSettings, export_cache
from end2race.restore import ModelFile, build, save_model
from loom.errors import UserError
from loom.jobs import Event

SHARD = 4  # of 10 windows: three shards, with frames that two of them show


@pytest.fixture
def settings(small, tmp_path, monkeypatch):
    """Return settings of an export of ten windows into a folder of a name."""
    monkeypatch.setattr(export, "SHARD_WINDOWS", SHARD)
    root = small({"train": (7, 9), "valid": (6,)})
    file = ModelFile(kind="teacher", preset="racing", seq_len=3)
    torch.manual_seed(0)
    save_model(tmp_path / "teacher.pt", build(file), file)

    def settings(name: str, **more) -> ExportSettings:
        given = {"batch_size": 3, "num_workers": 0, **more}
        return ExportSettings(root, tmp_path / "teacher.pt", tmp_path / name, **given)

    return settings


class Here:
    """An executor that runs jobs in this process, from the last to the first, and may lose some."""

    def __init__(self, survive: int = 99) -> None:
        self.survive, self.ran = survive, []

    def run(self, sweep, root, resume=False, *, retry_failed=False):
        for job in reversed(sweep.jobs):
            if self.survive == 0:
                yield Event(0.0, "failed", job.name)
                continue
            self.survive -= 1
            name, first, last = job.command[-3:]
            export_shards(Path(name), int(first), int(last), lambda line: None)
            assert all(Path(path).is_file() for path in job.outputs)
            self.ran.append((int(first), int(last)))
            yield Event(0.0, "done", job.name)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def quiet(line: str) -> None:
    pass


def test_jobs_in_any_order_write_the_bytes_of_one_process(settings):
    for split in ("train", "valid"):
        export_cache(settings("whole", split=split), quiet)
        executor = Here()
        export_with_jobs(settings("jobs", split=split, verify=True), executor, 1, quiet)
    assert len(contents(settings("whole").cache_dir)) == 1 + 2 * (3 + 1)
    assert contents(settings("jobs").cache_dir) == contents(settings("whole").cache_dir)


def test_what_killed_jobs_leave_is_completed_by_resume_to_the_same_bytes(settings):
    export_cache(settings("whole"), quiet)
    with pytest.raises(UserError, match="1 of 3 shards are not written; failed: train-000000"):
        export_with_jobs(settings("jobs"), Here(survive=2), 1, quiet)
    folder = settings("jobs").cache_dir
    (folder / "shard-000000.bin").write_bytes(b"cut")  # a commit that was killed half-way
    (folder / ".shard-000000.json.1.tmp").write_bytes(b"cut")
    with pytest.raises(UserError, match="holds 6 of 10 windows"):
        export_with_jobs(settings("jobs"), Here(), 1, quiet)
    again = Here()
    export_with_jobs(settings("jobs", resume=True), again, 1, quiet)
    assert contents(folder) == contents(settings("whole").cache_dir)
    nothing = Here()
    export_with_jobs(settings("jobs"), nothing, 1, quiet)
    assert nothing.ran == []


def test_a_repaired_shard_is_written_again_in_its_place(settings):
    export_with_jobs(settings("jobs"), Here(), 1, quiet)
    folder = settings("jobs").cache_dir
    before = contents(folder)
    (folder / "shard-000001.bin").write_bytes(bytes(len(before["shard-000001.bin"])))
    assert len(repair_cache(folder)) == 1
    export_with_jobs(settings("jobs", resume=True), Here(), 1, quiet)
    assert contents(folder) == before


def test_a_plan_that_another_export_has_overtaken_is_made_anew(settings):
    with pytest.raises(UserError, match="2 of 3"):
        export_with_jobs(settings("jobs"), Here(survive=1), 1, quiet)
    export_cache(settings("jobs", resume=True), quiet)
    (settings("jobs").cache_dir / "shard-000002.json").unlink()
    export_with_jobs(settings("jobs", resume=True), Here(), 1, quiet)
    cache = TeacherCache.open(settings("jobs").cache_dir)
    assert (len(cache), list(cache.damages())) == (10, [])


def test_a_job_refuses_a_teacher_that_is_not_the_plans_and_a_damaged_plan(settings, tmp_path):
    with pytest.raises(UserError, match="2 of 3"):
        export_with_jobs(settings("jobs"), Here(survive=1), 1, quiet)
    plan = tmp_path / "jobs-export" / "plan-train.json"
    with pytest.raises(UserError, match="no shards 0 to 9"):
        export_shards(plan, 0, 9, quiet)
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps({**content, "shards": content["shards"][::-1]}))
    with pytest.raises(UserError, match="or it is damaged"):
        export_shards(plan, 0, 0, quiet)
    plan.write_text(json.dumps({**content, "shards": "all"}))
    with pytest.raises(UserError, match="damaged plan"):
        export_shards(plan, 0, 0, quiet)
    plan.write_text(json.dumps(content))
    file = ModelFile(kind="teacher", preset="racing", seq_len=3)
    save_model(tmp_path / "teacher.pt", build(file), file)
    with pytest.raises(UserError, match="not those of the plan"):
        export_shards(plan, 0, 0, quiet)


def test_while_jobs_write_no_other_export_does(settings):
    cache = export_cache(settings("jobs"), quiet)
    other = TeacherCache.open(settings("jobs").cache_dir)
    with (
        cache.writing(together=True),
        other.writing(together=True),
        pytest.raises(UserError, match="another process writes"),
        TeacherCache.open(settings("jobs").cache_dir).writing(),
    ):
        pass


@pytest.mark.slow
@pytest.mark.dist
def test_an_export_of_two_processes_that_is_killed_and_resumed_has_the_same_bytes(settings):
    chosen = settings("jobs")
    export_cache(settings("whole"), quiet)
    command = f"from end2race.cache import export; export.SHARD_WINDOWS = {SHARD}; "
    command += "from end2race.cli import main; main()"
    arguments = ["export-cache", "--data-root", str(chosen.data_root), "--teacher-ckpt"]
    arguments += [str(chosen.teacher), "--cache-dir", str(chosen.cache_dir), "--batch-size", "3"]
    arguments += ["--num-workers", "0", "--jobs", "2"]

    def start(*more: str) -> subprocess.Popen:
        words = [sys.executable, "-c", command, *arguments, *more]
        return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})

    process = start()
    deadline = time.monotonic() + 300
    while not list(chosen.cache_dir.glob("shard-*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(chosen.cache_dir.glob("shard-*.json"))) < 3
    assert start("--resume").wait(600) == 0
    assert contents(chosen.cache_dir) == contents(settings("whole").cache_dir)
