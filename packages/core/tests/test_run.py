import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loom import provenance, run_directory
from loom import run as run_module
from loom.config import Config, resolve
from loom.errors import GateMissed, UserError
from loom.progress import read_status
from loom.record import read_records
from loom.run import Run

from packages.core.tests.small_run import Settings, digest, facts, opened


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


def test_a_run_that_failed_before_it_made_anything_makes_room_for_the_corrected_one(tmp_path):
    place = tmp_path / "first"
    with pytest.raises(UserError), opened(place):
        raise UserError("OPV3V: there is no such folder")
    with opened(place) as run:
        run.record(1, {"x": 1.0})
    (moved,) = (tmp_path / "archive").glob("*/first")
    assert read_status(moved)["reason"] == "OPV3V: there is no such folder"
    with pytest.raises(UserError, match="never mixed"):
        opened(place)


def test_a_run_that_failed_with_a_record_is_not_moved_unasked(tmp_path):
    place = tmp_path / "first"

    def recorded_and_failed() -> None:
        with opened(place) as run:
            run.record(1, {"x": 1.0})
            raise UserError("the disk is full")

    with pytest.raises(UserError, match="disk"):
        recorded_and_failed()
    with pytest.raises(UserError, match="never mixed"):
        opened(place)
    assert not (tmp_path / "archive").exists()


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


def test_a_git_that_does_not_answer_is_no_clean_checkout(tmp_path, monkeypatch):
    answers = {"rev-parse": b"0123\n", "diff": None, "status": b""}
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: answers[words[0]])
    assert provenance.git_state(str(tmp_path)) == {"commit": "0123", "dirty": "unknown"}
    assert provenance.shown_changes("unknown") == "changes unknown, git did not answer"


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


def test_a_missed_gate_leaves_a_page_that_says_so(tmp_path, monkeypatch):
    def miss(directory: Path) -> None:
        with opened(directory) as run:
            run.record(1, {"metric/psnr_db": 9.6})
            raise GateMissed("psnr_db = 9.6 is not >= 22.5: student is blank")

    with pytest.raises(GateMissed):
        miss(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "This run missed a gate: psnr_db = 9.6" in page

    def broken(directory: Path):
        raise ZeroDivisionError("a bug in the page")

    monkeypatch.setattr("loom.report_run.run_report", broken)
    with pytest.raises(GateMissed):
        miss(tmp_path / "other")
    assert "no page: ZeroDivisionError" in (tmp_path / "other" / "log.txt").read_text()


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


@pytest.mark.parametrize(("was", "again"), [("lego800-2", "lego800-1"), ("lego-200", "lego-1")])
def test_a_run_that_is_repeated_keeps_its_name_but_for_the_number(
    finished, tmp_path, monkeypatch, was, again
):
    monkeypatch.chdir(tmp_path)
    finished.rename(tmp_path / was)
    with Run.open("featdistill", Settings, tmp_path / was, quiet=True) as run:
        assert run.dir == Path("runs/featdistill") / again


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


def test_a_file_system_without_locks_is_an_error_with_a_hint(tmp_path, monkeypatch):
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="no locks available") as caught:
        opened(tmp_path / "run")
    assert "Lustre" in caught.value.hint


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
