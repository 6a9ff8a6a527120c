"""Work spread over jobs: each thing done once, and the same bytes as by one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from loom.errors import UserError
from loom.jobs import Event
from maniflow_overlay import parts
from maniflow_overlay.cli import app
from maniflow_overlay.data.frame_store import FrameStore
from maniflow_overlay.data.path_layers import PathLayers
from maniflow_overlay.parts import Part, Spread
from typer.testing import CliRunner

SIZE = ("--size", "48x36")


def command(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Episodes, their paths, kept answers, and what one process makes of them."""
    root = tmp_path_factory.mktemp("made")
    done("data", "synth", root / "episodes", "--task", "a", "--task", "b", "--episodes", "3")
    done("paths", "oracle", root / "episodes", root / "paths.jsonl", "--noise", "0.01")
    done("data", "convert", root / "episodes", root / "store", *SIZE)
    done("data", "attach-paths", root / "store", root / "paths.jsonl", "--draw-size", "96x72")
    for number, answer in enumerate(("(0.1, 0.2), (0.3, 0.4)", "no", "(0.5, 0.5), (0.75, 1)", "")):
        folder = root / "answers" / "a" / f"episode_{number % 2:02d}" / "raw_outputs"
        folder.mkdir(parents=True, exist_ok=True)
        text = f"<ans>[{answer}]</ans>" if answer else ""
        (folder / f"raw_frame_{number:04d}.txt").write_text(text, encoding="utf-8")
    done("paths", "parse", root / "answers", root / "parsed.jsonl")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class Here:
    """Runs jobs in this process, those whose outputs are missing, until it is `cut`."""

    def __init__(self, cut: Callable[[str], bool] = lambda name: False) -> None:
        self.cut, self.ran = cut, []
        self.slots: int | None = None

    def __call__(self, name: str, slots: int | None) -> Here:
        assert name == "local"
        assert slots is not None
        assert 1 <= slots <= (os.cpu_count() or 1)
        self.slots = slots
        return self

    def run(self, sweep, root, resume=False, *, retry_failed=False) -> Generator[Event]:
        root.mkdir(exist_ok=True)
        (root / "sweep.json").touch()
        for job in sweep.jobs:
            if self.cut(job.name):
                raise KeyboardInterrupt
            if all(Path(output).exists() for output in job.outputs):
                continue
            assert job.command[:3] == [sys.executable, "-m", "maniflow_overlay"]
            done(*job.command[3:])
            self.ran.append(job.name)
            yield Event(time.time(), "done", job.name)


@pytest.fixture
def here(monkeypatch) -> Callable[..., Here]:
    def use(*cut) -> Here:
        executor = Here(*cut)
        monkeypatch.setattr(parts, "make_executor", executor)
        return executor

    return use


def test_parts_are_an_exact_cover_in_order_and_as_large_as_each_other():
    for count in range(1, 12):
        for total in range(25):
            shares = [Part(number + 1, count).of(range(total)) for number in range(count)]
            assert [thing for share in shares for thing in share] == list(range(total))
            sizes = {len(share) for share in shares}
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("jobs", [2, 9])
def test_parts_joined_are_what_one_process_writes(made, tmp_path, here, jobs):
    """Six episodes and four answers: with nine jobs there are more than there is work."""
    executor = here()
    spread = ("--jobs", jobs)
    done("data", "convert", made / "episodes", tmp_path / "store", *SIZE, *spread)
    assert len(executor.ran) == min(jobs, 6)
    attach = ("data", "attach-paths", tmp_path / "store", made / "paths.jsonl")
    done(*attach, "--draw-size", "96x72", *spread)
    assert contents(tmp_path / "store") == contents(made / "store")
    assert len(PathLayers(FrameStore(tmp_path / "store")).offset) > 6
    done("paths", "parse", made / "answers", tmp_path / "parsed.jsonl", *spread)
    assert (tmp_path / "parsed.jsonl").read_bytes() == (made / "parsed.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parsed.jsonl", "store"]


def test_an_interrupted_command_goes_on_with_the_parts_that_are_missing(made, tmp_path, here):
    convert = ("data", "convert", made / "episodes", tmp_path / "store", *SIZE, "--jobs", 3)
    first = here(lambda name: name == "part-3-of-3")
    assert command(*convert).exit_code == 130
    second = here()
    done(*convert)
    assert (first.ran, second.ran) == (["part-1-of-3", "part-2-of-3"], ["part-3-of-3"])
    store = {name: data for name, data in contents(made / "store").items() if "/" not in name}
    assert contents(tmp_path / "store") == store
    assert "is a finished store" in command(*convert).output
    assert not (tmp_path / "store.parts").exists()


def test_no_more_local_jobs_run_than_processors_may_be_used(made, tmp_path, here, monkeypatch):
    executor = here()
    for allowed, jobs, slots in ((1, 4, 1), (3, 4, 3), (8, 4, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=allowed: set(range(n)))
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        done("paths", "parse", made / "answers", tmp_path / f"{allowed}.jsonl", "--jobs", jobs)
        assert executor.slots == slots


def test_a_part_that_is_whole_is_left_alone(made, tmp_path):
    part = ("data", "convert", made / "episodes", tmp_path / "s", *SIZE, "--part", "2/3")
    done(*part)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    done(*part)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_parts_of_other_episodes_are_not_joined(made, tmp_path, here):
    convert = ("data", "convert", tmp_path / "episodes", tmp_path / "store", *SIZE, "--jobs", 2)
    done("data", "synth", tmp_path / "episodes", "--episodes", "2")
    here(lambda name: name == "part-2-of-2")
    assert command(*convert).exit_code == 130
    done("data", "synth", tmp_path / "episodes", "--episodes", "2", "--seed", "5")
    here()
    said = command(*convert)
    assert said.exit_code == 2
    assert "has changed since it was converted" in said.output
    done("data", "synth", tmp_path / "episodes", "--episodes", "3")
    assert "hold other episodes" in command(*convert).output


def test_a_part_that_failed_is_named_with_its_log(monkeypatch, made, tmp_path):
    class Failing(Here):
        def run(self, sweep, root, resume=False, *, retry_failed=False):
            yield Event(0.0, "failed", sweep.jobs[1].name, "exit code 2")
            yield Event(0.0, "failed", "")

    monkeypatch.setattr(parts, "make_executor", Failing())
    parse = ("paths", "parse", made / "answers", tmp_path / "p.jsonl", "--jobs", 2)
    said = command(*parse)
    assert said.exit_code == 2
    assert str(tmp_path / "p.jsonl.parts" / "logs" / "part-2-of-2.log") in said.output
    assert not (tmp_path / "p.jsonl").exists()


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "1/-2", "a/b", "1/2/3"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="not K/N"):
        Part.read(text)


def test_options_that_do_not_belong_together_are_refused():
    with pytest.raises(UserError, match="--part is the work of one job"):
        Spread.read(3, "local", "1/3")
    with pytest.raises(UserError, match="--executor ray needs --jobs"):
        Spread.read(None, "ray", None)
    with pytest.raises(UserError, match="100000 jobs"):
        Spread.read(100_000, "local", None)


@pytest.mark.slow
def test_a_spread_conversion_that_was_killed_ends_in_the_same_bytes(made, tmp_path):
    """Real jobs; the command is killed twice, with all of its processes."""
    store = tmp_path / "store"
    words = ["data", "convert", made / "episodes", store, *SIZE, "--jobs", "3"]
    call = [sys.executable, "-m", "maniflow_overlay", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    ended: list[str] = []
    for _ in range(2):
        process = subprocess.Popen(
            call, stdout=subprocess.PIPE, env=environment, text=True, cwd=tmp_path
        )
        assert process.stdout is not None
        for line in process.stdout:
            if ": done" in line:
                ended.append(line.partition(":")[0])
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
    said = subprocess.run(call, capture_output=True, env=environment, text=True, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    ended += [line.partition(":")[0] for line in said.stdout.splitlines() if ": done" in line]
    assert sorted(ended) == [f"part-{number}-of-3" for number in (1, 2, 3)]
    alone = {name: data for name, data in contents(made / "store").items() if "/" not in name}
    assert contents(store) == alone
