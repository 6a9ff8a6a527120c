import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from loom import provenance, run_directory
from loom import run as run_module
from loom.config import Config, read_yaml, resolve
from loom.errors import GateMissed, UserError
from loom.progress import read_status
from loom.record import read_records
from loom.run import Run


class Train(Config):
    max_steps: int = 50_000
    lr: float = 5e-4


class Settings(Config):
    seed: int = 2025
    train: Train = Train()

    free_on_resume: ClassVar = frozenset({"train.max_steps"})


def opened(directory, **options) -> Run[Settings]:
    return Run.open("featdistill", Settings, directory=directory, quiet=True, **options)


def facts(directory: Path) -> dict:
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


def digest(directory: Path) -> dict[str, bytes]:
    files = (p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


@pytest.fixture
def finished(tmp_path) -> Path:
    directory = tmp_path / "runs" / "lego"
    with opened(directory) as run:
        for step in (0, 50, 100):
            run.record(step, {"loss/total": 1.0 - step / 200})
    return directory


def test_a_directory_with_another_run_is_refused_and_left_as_it_is(finished):
    before = digest(finished)
    with pytest.raises(UserError, match="never mixed") as caught:
        opened(finished)
    assert "archive" in caught.value.hint
    assert digest(finished) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"not a run's directory|not empty|config\.yaml"):
        opened(tmp_path, resume=resume)
    assert list(digest(tmp_path)) == ["thesis.tex"]


def test_archive_moves_the_old_run_aside_whole(finished):
    before = digest(finished)
    with opened(finished, archive=True) as run:
        run.record(0, {"x": 1.0})
    (moved,) = (finished.parent / "archive").glob("*/lego")
    assert digest(moved) == before
    assert [set(row) for row in read_records(finished)] == [{"step", "time", "x"}]


def test_two_archives_within_a_second_do_not_meet(finished):
    for _ in range(3):
        with opened(finished, archive=True):
            pass
    assert len(list((finished.parent / "archive").glob("*/lego"))) == 3


def test_run_json_says_what_the_numbers_depend_on(finished):
    known = facts(finished)
    here = Path(run_module.__file__).parent
    commit = subprocess.run(
        ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert known["git"]["commit"] == commit.stdout.strip()
    assert known["packages"]["loom"] == {"version": "0.1.0", "path": str(here)}
    assert known["packages"]["featdistill"]["path"].endswith("featdistill")
    assert known["packages"]["torch"]["version"].startswith("2.")
    assert known["config"] == {"seed": 2025, "train": {"max_steps": 50_000, "lr": 5e-4}}
    assert (known["seed"], known["world_size"], known["host"]) == (2025, 1, os.uname().nodename)
    assert known["threads"] >= 1
    assert len(known["config_hash"]) == 64


def test_the_saved_configuration_runs_again_as_it_is(finished, tmp_path):
    again = resolve(Settings, finished / "config.yaml").config
    assert again == Settings()
    with opened(tmp_path / "again", source=finished) as run:
        assert run.config == again


def test_the_digest_of_uncommitted_changes_follows_them(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    assert provenance.git_state(str(tmp_path)) is None
    git("init", "-q")
    file = tmp_path / "a.py"
    file.write_text("1", encoding="utf-8")
    git("add", ".")
    git("commit", "-qm", "x")
    seen = [provenance.git_state(str(tmp_path))]
    for text in ("2", "3"):
        file.write_text(text, encoding="utf-8")
        seen.append(provenance.git_state(str(tmp_path)))
    assert seen[0] is not None
    assert seen[0]["dirty"] is None
    assert len({state["dirty"] for state in seen if state}) == 3
    assert len({state["commit"] for state in seen if state}) == 1


def test_resume_goes_on_and_forgets_what_came_after_the_checkpoint(finished):
    with opened(finished, resume=True) as run:
        assert run.resumed
        run.resume_at(50)
        run.record(75, {"loss/total": -1.0})
    rows = [(row["step"], row["loss/total"]) for row in read_records(finished)]
    assert rows == [(0, 1.0), (50, 0.75), (75, -1.0)]
    assert facts(finished)["resumes"][0]["step"] == 50


def test_resume_without_a_checkpoint_keeps_every_record(finished):
    with opened(finished, resume=True) as run:
        run.record(150, {"loss/total": 0.1})
    assert [row["step"] for row in read_records(finished)] == [0, 50, 100, 150]


def test_resume_refuses_other_settings_and_names_them(finished):
    before = digest(finished)
    with pytest.raises(UserError, match=r"train\.lr: 0\.0005 -> 0\.001") as caught:
        opened(finished, resume=True, overrides=["train.lr=1e-3", "seed=1"])
    assert "seed: 2025 -> 1" in caught.value.message
    assert digest(finished) == before


def test_resume_takes_a_setting_that_may_change_and_notes_it(finished):
    with opened(finished, resume=True, overrides=["train.max_steps=60000"]) as run:
        assert run.config.train.max_steps == 60_000
    assert facts(finished)["resumes"][0]["changed"] == ["train.max_steps: 50000 -> 60000"]
    assert read_yaml(finished / "config.yaml")["train"]["max_steps"] == 60_000
    assert facts(finished)["config"]["train"]["max_steps"] == 60_000


class Rates(Config):
    lr: float = 0.1


class Old(Settings):
    phases: tuple[Rates, ...] = ()


class Phase(Rates):
    warmup: int = 5


class Loader(Config):
    workers: int = 2


class NewerTrain(Train):
    recent_steps: int = 100_000
    ceiling: float = math.inf


class Newer(Settings):
    """The settings of later code: keys more at the top, in a section and in a list's items."""

    train: NewerTrain = NewerTrain()
    loader: Loader = Loader()
    phases: tuple[Phase, ...] = ()


class OnlySteps(Config):
    max_steps: int = 50_000


class Fewer(Config):
    """The settings of later code that has lost a key and gained a section."""

    seed: int = 2025
    train: OnlySteps = OnlySteps()
    loader: Loader = Loader()


def test_resume_takes_keys_that_newer_code_has_at_their_defaults_and_names_them(tmp_path):
    first = Run.open("featdistill", Old, overrides=["phases=[{}]"], directory=tmp_path, quiet=True)
    with first:
        pass
    with Run.open("featdistill", Newer, directory=tmp_path, resume=True, quiet=True) as run:
        assert run.config.train.recent_steps == 100_000
    line = (
        "[resume] newer code has settings of its own, at their defaults: "
        "loader.workers, phases.0.warmup, train.ceiling, train.recent_steps"
    )
    assert line in facts(tmp_path)["warnings"]
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").count(line) == 1
    with Run.open("featdistill", Newer, directory=tmp_path, resume=True, quiet=True):
        pass
    assert [each["gained"] for each in facts(tmp_path)["resumes"]][1] == []


def test_resume_refuses_a_newer_key_at_another_value_and_a_key_that_is_gone(finished):
    options = {"directory": finished, "resume": True, "quiet": True}
    with pytest.raises(UserError, match=r"train\.recent_steps: 100000 -> 7") as caught:
        Run.open("featdistill", Newer, overrides=["train.recent_steps=7"], **options)
    assert "ceiling" not in caught.value.message
    with pytest.raises(UserError, match=r"train\.lr: 0\.0005 -> absent") as caught:
        Run.open("featdistill", Fewer, resolve(Fewer), **options)
    assert "workers" not in caught.value.message


def test_resume_refuses_another_checkout_and_names_it(finished, monkeypatch):
    other = provenance.packages("featdistill")
    was, other["featdistill"]["path"] = other["featdistill"]["path"], "/other/featdistill"
    monkeypatch.setattr(provenance, "packages", lambda thread: other)
    with pytest.raises(UserError, match="package featdistill: ") as caught:
        opened(finished, resume=True)
    assert f'"{was}" -> "/other/featdistill"' in caught.value.message


def test_resume_warns_of_another_machine(finished, monkeypatch):
    here = provenance.machine()
    monkeypatch.setattr(provenance, "machine", lambda: here | {"host": "elsewhere"})
    with opened(finished, resume=True):
        pass
    assert any('-> "elsewhere"' in warning for warning in facts(finished)["warnings"])


def test_a_value_that_was_overridden_is_said_and_is_no_warning(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 7\n", encoding="utf-8")
    options = {"directory": tmp_path / "run"}
    with Run.open("featdistill", Settings, file, ["seed=8"], **options):
        pass
    assert "seed: 7" in capsys.readouterr().out
    assert "-> 8 (override)" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert facts(tmp_path / "run")["warnings"] == []


@pytest.mark.parametrize("script", ["/x/bin/pinpad", "/x/packages/pinpad/src/pinpad/__main__.py"])
def test_the_command_is_told_as_it_was_called(tmp_path, monkeypatch, script):
    monkeypatch.setattr(sys, "argv", [script, "train", "seed=1 2"])
    with opened(tmp_path):
        pass
    assert facts(tmp_path)["command"] == "pinpad train 'seed=1 2'"


@pytest.mark.parametrize("config", ["lost", 3, [1], None])
def test_resume_refuses_facts_that_are_not_what_a_run_writes(finished, config):
    (finished / "run.json").write_text(json.dumps(facts(finished) | {"config": config}))
    with pytest.raises(UserError, match=r"run\.json: is not what Loom wrote"):
        opened(finished, resume=True)


def test_resume_refuses_other_data_and_names_both(tmp_path):
    data, directory = tmp_path / "scene.bin", tmp_path / "run"
    data.write_bytes(b"one")
    with opened(directory) as run:
        assert run.use("data", data) == hashlib.sha256(b"one").hexdigest()
        run.use("teacher", "ab" * 32)
    with opened(directory, resume=True) as run:
        run.use("data", data)
        with pytest.raises(UserError, match=r"teacher: sha256 abab.* -> sha256 cdcd"):
            run.use("teacher", "cd" * 32)
        data.write_bytes(b"two")
        with pytest.raises(UserError, match=r"data: .*scene\.bin \(sha256 7692.*\) -> .*3fc4"):
            run.use("data", data)
    assert facts(directory)["parents"]["teacher"]["sha256"] == "ab" * 32


def test_the_digest_of_a_folder_covers_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    seen = [provenance.fingerprint(tmp_path)[0]]
    (tmp_path / "a" / "x").write_bytes(b"2")
    seen.append(provenance.fingerprint(tmp_path)[0])
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    seen.append(provenance.fingerprint(tmp_path)[0])
    assert len(set(seen)) == 3
    with pytest.raises(UserError, match="no such file"):
        provenance.fingerprint(tmp_path / "b")


def test_an_override_that_shortens_the_run_is_said_in_the_words_of_the_notes(tmp_path, capsys):
    with Run.open("featdistill", Settings, directory=tmp_path) as run:
        run.shorten("train.max_steps", 50_000, 5000)
        run.shorten("train.max_steps", 50_000, 50_000)
    line = (
        "[config] max_steps override 5000 is below config max_steps 50000; "
        "using override regardless."
    )
    assert capsys.readouterr().out.splitlines().count(line) == 1
    assert facts(tmp_path)["shortened"] == [{"key": "train.max_steps", "was": 50_000, "now": 5000}]
    assert facts(tmp_path)["warnings"] == [line]
    assert line in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "finished", ""),
        (UserError("camera 17 is upside down"), "failed", "camera 17 is upside down"),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero"),
        (GateMissed("psnr_db 9.6 < 22.5"), "gate_missed", "psnr_db 9.6 < 22.5"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (SystemExit(4), "failed", "exit with 4"),
        (SystemExit(0), "finished", ""),
    ],
)
def test_how_a_run_ended_stands_in_its_directory(tmp_path, error, state, reason):
    def block():
        with opened(tmp_path) as run:
            assert read_status(tmp_path)["state"] == "running"
            run.status(data_wait=0.25)
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(type(error)):
            block()
    status = read_status(tmp_path)
    assert (status["state"], status["reason"]) == (state, reason)
    assert (status["thread"], status["pid"], status["data_wait"]) == (
        "featdistill",
        os.getpid(),
        0.25,
    )
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert ("Traceback" in log) == isinstance(error, ZeroDivisionError)


def test_a_loop_that_stopped_early_says_so_itself(tmp_path):
    with opened(tmp_path) as run:
        run.status(state="stopped", reason="SIGTERM at step 40")
    status = read_status(tmp_path)
    assert (status["state"], status["reason"]) == ("stopped", "SIGTERM at step 40")


def test_status_and_log_follow_the_progress(tmp_path, capsys):
    with Run.open("featdistill", Settings, directory=tmp_path) as run:
        run.info("loading teacher frames 40/200")
        report = run.progress("蒸留", 10)
        report.update(10, "loss 0.5")
        run.record(10, {"metric/psnr_db": float("inf"), "loss/total": 2.0})
        run.record(11, {"loss/total": 1.0})
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "loading teacher frames 40/200"
    assert out[-1].startswith("(蒸留) [10/10]: 100%|")
    status = read_status(tmp_path)
    assert (status["phase"], status["step"], status["total"]) == ("蒸留", 10, 10)
    assert status["metrics"] == {"metric/psnr_db": "Infinity", "loss/total": 1.0}  # the newest
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert [line for line in out if line not in log] == []


HOLD = (
    "import sys, pathlib; from loom.config import Config; from loom.run import Run\n"
    "class C(Config): seed: int = 2025\n"
    "with Run.open('featdistill', C, directory=pathlib.Path(sys.argv[1]), quiet=True) as run:\n"
    "    run.record(0, {'x': 1.0}); assert 'torch' not in sys.modules\n"
    "    print(flush=True); sys.stdin.read()"
)


class Same(Config):
    seed: int = 2025


def test_a_second_process_is_told_who_runs_here_and_kill_9_leaves_a_run_to_resume(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        for resume, archive in ((False, False), (True, False), (False, True)):
            with pytest.raises(UserError, match=f"process {child.pid} on {os.uname().nodename}"):
                Run.open("featdistill", Same, directory=tmp_path, resume=resume, archive=archive)
        assert read_status(tmp_path)["state"] == "running"
        child.kill()
    assert read_status(tmp_path)["state"] == "died"
    with Run.open("featdistill", Same, directory=tmp_path, resume=True, quiet=True) as run:
        run.resume_at(0)
        run.record(1, {"x": 2.0})
    assert [row["x"] for row in read_records(tmp_path)] == [1.0, 2.0]
    assert read_status(tmp_path)["state"] == "finished"


@pytest.mark.parametrize("survivors", [(), (".lock",), (".lock", "config.yaml", ".run.json.1.tmp")])
def test_a_process_killed_while_opening_leaves_a_directory_to_begin_in(finished, survivors):
    (finished / ".run.json.1.tmp").touch()
    for path in [p for p in finished.rglob("*") if p.is_file() and p.name not in survivors]:
        path.unlink()
    (finished / "tensorboard").rmdir()
    with opened(finished, resume=True, source=resolve(Settings)) as run:
        assert not run.resumed
        run.record(0, {"x": 1.0})
    assert not list(finished.glob("*.tmp"))


def test_a_rank_that_is_not_the_first_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Run.open("featdistill", Settings, directory=tmp_path / "run") as run:
        run.info("x")
        run.warn("x")
        run.shorten("train.max_steps", 10, 5)
        run.record(0, {"x": 1.0})
        run.status(x=1)
        run.progress("x", 2).update(1)
        assert run.use("data", "ab" * 32) == "ab" * 32
        assert not run.is_main
        run.path("evaluation", "x.png")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_several_processes_must_be_told_their_directory(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="agree on its directory"):
        Run.open("featdistill", Settings)


def test_default_directories_are_numbered_and_the_newest_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "white background.yaml"
    file.write_text("seed: 7\n", encoding="utf-8")

    def directory_of(**options):
        with Run.open("featdistill", Settings, file, quiet=True, **options) as run:
            assert run.seed == 7
            return run.dir

    with pytest.raises(UserError, match="to resume"):
        directory_of(resume=True)
    made = [directory_of() for _ in range(10)]
    folder = Path("runs/featdistill")
    assert made == [folder / f"white-background-{n}" for n in range(1, 11)]
    assert directory_of(resume=True) == made[-1]


def test_generators_depend_on_seed_and_name_only(tmp_path):
    with opened(tmp_path / "a") as one, opened(tmp_path / "b") as two:
        draws = [one.rng("init").random(), two.rng("init").random(), one.rng("data").random()]
        assert draws[0] == draws[1] != draws[2]
        seeds = {run.generator(name).initial_seed() for run in (one, two) for name in "xy"}
        assert len(seeds) == 2
    with opened(tmp_path / "c", overrides=["seed=1"]) as other:
        assert other.rng("init").random() != draws[0]


def test_a_file_where_the_directory_should_be_is_an_error_with_a_hint(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept", encoding="utf-8")
    for directory in (file, file / "run"):
        with pytest.raises(UserError) as caught:
            opened(directory)
        assert caught.value.hint
    assert file.read_text(encoding="utf-8") == "kept"


def test_a_disk_that_fails_while_opening_gives_the_directory_free(tmp_path, monkeypatch):
    def refuse(path, value):
        raise UserError(f"{path}: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_json", refuse)
        with pytest.raises(UserError, match="no space") as caught:
            opened(tmp_path)
    with opened(tmp_path):
        assert caught.value.__traceback__ is not None  # keeps what failed alive, and its lock


def test_a_disk_that_fails_at_the_end_does_not_hide_the_error(tmp_path, monkeypatch):
    def refuse(path, line):
        raise UserError(f"{path}: no space left on device")

    def block():
        with opened(tmp_path):
            monkeypatch.setattr(run_module, "append_line", refuse)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert read_status(tmp_path)["state"] == "failed"


def test_a_damaged_run_json_is_an_error(finished):
    (finished / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json"):
        opened(finished, resume=True)
    (finished / "run.json").write_text('{"a":', encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json:1"):
        opened(finished, resume=True)


def test_resume_and_archive_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="not both"):
        opened(tmp_path, resume=True, archive=True)


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path):
    with pytest.raises(UserError, match=r"there is no run|no such file"):
        opened(tmp_path / "typo", resume=True, source=resolve(Settings))
    assert not (tmp_path / "typo").exists()


def test_moving_a_run_aside_keeps_every_file_and_refuses_a_running_one(tmp_path):
    old = tmp_path / "run"
    old.mkdir()
    (old / "metrics.jsonl").write_text("{}")
    moved = run_directory.move_aside(old)
    assert not old.exists()
    assert moved.parent.parent == tmp_path / "archive"
    assert (moved / "metrics.jsonl").read_text() == "{}"
    with opened(old), pytest.raises(UserError, match="is running in it"):
        run_directory.move_aside(old)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (None, "there is no run to resume"),
        (".lock", "before it had written its configuration"),
        ("thesis.tex", "not a run's directory"),
    ],
)
def test_a_resume_without_the_settings_of_its_run_never_takes_the_defaults(tmp_path, left, message):
    directory = tmp_path / "run"
    if left is not None:
        directory.mkdir()
        (directory / left).touch()
    with pytest.raises(UserError, match=message):
        run_directory.settings_of(None, directory, resume=True)
    with pytest.raises(UserError, match=message):
        opened(directory, resume=True)


def test_settings_come_from_the_named_file_or_on_a_resume_from_the_run(finished, tmp_path):
    file = tmp_path / "mine.yaml"
    assert run_directory.settings_of(file, finished, resume=True) == file
    assert run_directory.settings_of(None, finished, resume=True) == finished / "config.yaml"
    assert run_directory.settings_of(None, finished, resume=False) is None
    assert run_directory.settings_of(None, None, resume=True) is None
