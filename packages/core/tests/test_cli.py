"""Every command line fails in the same way, starts without torch, and reads runs of any state."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytest
import typer
from loom import cli
from loom.config import Config
from loom.errors import GateMissed, UserError
from loom.files import write_json
from typer.testing import CliRunner

runner = CliRunner()


class Fall:
    def __init__(self, total: int) -> None:
        self.total = total

    def at(self, step: int) -> float:
        return 1 - step / self.total


class Train(Config):
    lr: float = 1e-3
    max_steps: int = 100

    def schedules(self) -> Mapping[str, Fall]:
        return {"lr": Fall(self.max_steps)}


class Settings(Config):
    seed: int = 0
    train: Train = Train()


MODEL = "loom_test_settings:Settings"


@pytest.fixture(autouse=True)
def _importable_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "loom_test_settings", sys.modules[__name__])


def failing(error: BaseException) -> typer.Typer:
    app = cli.application("demo", "A demo.", "loom-core")

    @app.command()
    def fail(
        config: cli.ConfigOption = None,
        overrides: cli.Overrides = None,
        run_dir: cli.RunDir = None,
        resume: cli.Resume = False,
        archive: cli.Archive = False,
    ) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (UserError("x.yaml:3: bad", hint="mend it"), 2, "error: x.yaml:3: bad\nhint: mend it\n"),
        (UserError("bad"), 2, "error: bad\n"),
        (GateMissed("psnr 9 < 22", hint="train"), 3, "error: psnr 9 < 22\nhint: train\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
        (
            RuntimeError("a\nb"),
            1,
            "error: a bug in demo: RuntimeError: a b; run again with --debug for the traceback\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.png"),
            2,
            "error: out.png: no space left on device\n"
            "hint: free some space on this disk, or give another folder\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_failure_has_its_words_and_exit_code(error, code, stderr, monkeypatch):
    monkeypatch.setattr(cli, "_drop_output", lambda: None)
    result = runner.invoke(failing(error), ["fail"], prog_name="demo")
    assert (result.exit_code, result.stderr, result.stdout) == (code, stderr, "")


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(arguments):
    result = runner.invoke(failing(RuntimeError("x")), arguments)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "raise error" in result.stderr


def test_the_options_of_a_train_command_arrive_as_they_were_given():
    app = cli.application("demo", "A demo.", "loom-core")
    seen = {}

    @app.command()
    def train(
        config: cli.ConfigOption = None,
        overrides: cli.Overrides = None,
        run_dir: cli.RunDir = None,
        resume: cli.Resume = False,
        archive: cli.Archive = False,
    ) -> None:
        seen.update(locals())

    arguments = ["train", "train.lr=5e-4", "--resume", "--config", "a.yaml", "machine=x"]
    assert runner.invoke(app, arguments).exit_code == 0
    assert seen["overrides"] == ["train.lr=5e-4", "machine=x"]
    assert (seen["config"], seen["resume"], seen["archive"]) == (Path("a.yaml"), True, False)
    assert runner.invoke(app, ["trian"]).exit_code == 2
    assert "train" in runner.invoke(app, ["trian"]).stderr


def test_version_names_the_packages():
    result = runner.invoke(failing(UserError("")), ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("demo 0.")
    assert "torch " in result.stdout


def test_a_thread_adds_its_checks_to_the_doctor(monkeypatch):
    from loom import doctor

    monkeypatch.setattr(doctor, "core_checks", lambda _: [])
    extra = [doctor.Check("teacher", lambda: doctor.Finding("fail", "no data", "fetch it"))]
    result = runner.invoke(
        cli.application("demo", "A demo.", "loom-core", lambda: extra), ["doctor", "--json"]
    )
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["name"] == "teacher"


def test_what_a_threads_checks_take_are_options_of_the_doctor(monkeypatch):
    from loom import doctor

    monkeypatch.setattr(doctor, "core_checks", lambda _: [])

    def checks(
        traces: Annotated[Path | None, typer.Option(help="Recorded traces.")] = None,
        strict: bool = False,
    ):
        found = doctor.Finding("ok", f"{traces} {type(traces).__name__} {strict}")
        return [doctor.Check("traces", lambda: found)]

    app = cli.application("demo", "A demo.", "loom-core", checks)

    def detail(*words):
        result = runner.invoke(app, ["doctor", "--json", *words])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)[0]["detail"]

    assert detail() == "None NoneType False"
    assert detail("--traces", "folder", "--strict") == f"folder {type(Path()).__name__} True"
    assert "Recorded traces." in runner.invoke(app, ["doctor", "--help"]).output
    assert runner.invoke(app, ["doctor", "--trace", "folder"]).exit_code == 2


def test_help_does_not_import_torch_or_pydantic():
    code = (
        "import sys; from loom import cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', [m for m in ('torch', 'pydantic', 'numpy', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout


def test_a_closed_pipe_is_quiet(tmp_path):
    write_run(tmp_path / "runs" / "a", state="finished")
    loom = "import sys; from loom.cli import main; sys.argv[0] = 'loom'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", loom, "runs", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=60)
    assert stderr == b""
    assert process.returncode == 0


# --- runs -------------------------------------------------------------------------------------


def write_run(path: Path, *, state: str = "running", config: str = "seed: 1\n", **status) -> Path:
    path.mkdir(parents=True)
    facts = {"thread": "demo", "began": f"2026-01-0{len(path.name)}", "config_origins": {}}
    write_json(path / "run.json", facts)
    beat = {"heartbeat": time.time(), "pid": os.getpid(), "host": "elsewhere", "interval_s": 5}
    write_json(path / "status.json", {"state": state, **beat, **status})
    (path / "config.yaml").write_text(config)
    return path


def test_runs_lists_whole_damaged_and_half_written_runs_and_skips_the_rest(tmp_path):
    root = tmp_path / "runs"
    write_run(root / "demo" / "a", state="finished", step=10, total=10)
    (write_run(root / "demo" / "bb") / "status.json").write_text('{"state": "run')
    (write_run(root / "demo" / "ccc") / "status.json").unlink()
    (write_run(root / "demo" / "dddd") / "run.json").write_bytes(b"\xff[]")
    (write_run(root / "demo" / "eeeee") / "status.json").write_text("[1]")
    write_run(root / "demo" / "archive" / "old")
    (root / "photos" / "2024").mkdir(parents=True)
    (root / "note.txt").touch()
    result = runner.invoke(cli.app, ["runs", str(root), "--json"])
    assert result.exit_code == 0
    states = {Path(each["path"]).name: each["state"] for each in json.loads(result.stdout)}
    assert states == {
        "a": "finished",
        "bb": "unreadable",
        "ccc": "unreadable",
        "dddd": "running",
        "eeeee": "unreadable",
    }
    table = runner.invoke(cli.app, ["runs", str(root)])
    assert len(table.stdout.splitlines()) == 6
    assert runner.invoke(cli.app, ["runs", str(tmp_path / "gone")]).exit_code == 2
    assert "no runs" in runner.invoke(cli.app, ["runs", str(root / "photos")]).stdout


@pytest.mark.parametrize(
    ("state", "code"),
    [("running", 0), ("finished", 0), ("stopped", 0), ("gate_missed", 3), ("failed", 1)],
)
def test_watch_ends_with_the_state_of_the_run(tmp_path, state, code):
    path = write_run(tmp_path / "a", state=state, step=48, total=50_000, rate=9.6, phase="特徴")
    result = runner.invoke(cli.app, ["watch", str(path), "--once"])
    assert result.exit_code == code
    shown = "(特徴) [48/50000]:" if state == "running" else f"{state}, step 48 of 50000"
    assert shown in result.stdout
    as_json = runner.invoke(cli.app, ["watch", str(path), "--once", "--json"])
    assert json.loads(as_json.stdout)["state"] == state


def test_watch_follows_until_the_end(tmp_path, monkeypatch):
    from loom import runs

    path = write_run(tmp_path / "a", step=1, total=3, rate=1.0, phase="p")

    def next_state(_):
        write_json(path / "status.json", {"state": "finished", "step": 3, "total": 3})

    monkeypatch.setattr(runs.time, "sleep", next_state)
    result = runner.invoke(cli.app, ["watch", str(path)])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert result.stdout.splitlines()[-1] == "finished, step 3 of 3"
    assert runner.invoke(cli.app, ["watch", str(tmp_path)]).exit_code == 2


def test_compare_names_settings_and_last_metrics(tmp_path):
    one = write_run(tmp_path / "one", config="train:\n  lr: 5e-4\n  same: 1\n")
    two = write_run(tmp_path / "two", config="train:\n  lr: 1e-3\n  same: 1\n")
    rows = [{"step": 1, "time": 0, "metric/psnr_db": 9.5}, {"step": 2, "time": 0, "loss/a": 0.5}]
    (one / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = runner.invoke(cli.app, ["compare", str(one), str(two)])
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["train.lr:", "0.0005", "->", "0.001"]
    assert ["metric/psnr_db", "9.5", "-"] in lines
    assert ["loss/a", "0.5", "-"] in lines
    same = runner.invoke(cli.app, ["compare", str(one), str(one)])
    assert "the settings are the same" in same.stdout


def test_report_of_a_run_is_one_file(tmp_path):
    path = write_run(tmp_path / "a", state="finished")
    result = runner.invoke(cli.app, ["report", str(path)])
    assert result.exit_code == 0, result.stderr
    assert "<html" in (path / "report.html").read_text()


def test_config_show_gives_every_value_its_origin(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  lr: 5e-4\n")
    result = runner.invoke(cli.app, ["config", "show", str(path), "seed=3", "--model", MODEL])
    lines = [line.split("  # ") for line in result.stdout.splitlines()]
    assert {key.strip(): origin for key, origin in lines} == {
        "seed=3": "override seed=3",
        "train.lr=0.0005": f"{path}:2",
        "train.max_steps=100": "default",
    }
    assert "--model" in runner.invoke(cli.app, ["config", "show", str(path)]).stderr
    for wrong in ("loom.cli:app", "nowhere:X", "loom.cli:nothing"):
        shown = runner.invoke(cli.app, ["config", "show", "--model", wrong])
        assert shown.exit_code == 2


def test_config_show_of_a_run_needs_no_model(tmp_path):
    run = write_run(tmp_path / "a", config="seed: 4\n")
    write_json(run / "run.json", {"config_origins": {"seed": "demo.yaml:1"}})
    result = runner.invoke(cli.app, ["config", "show", str(run)])
    assert result.stdout == "seed=4  # demo.yaml:1\n"


def test_schedule_draws_what_changes_and_its_values_are_those_of_the_config():
    arguments = ["schedule", "train.max_steps=50", "--model", MODEL]
    values = json.loads(runner.invoke(cli.app, [*arguments, "--json"]).stdout)["train.lr"]
    assert values[0] == [0, 1.0]
    assert values[-1] == [50, 0.0]
    assert all(value == 1 - step / 50 for step, value in values)
    drawn = runner.invoke(cli.app, arguments).stdout
    assert drawn.startswith("train.lr  ███")
    assert "1 at 0 -> 0 at 50" in drawn


def test_ext_info_names_the_tool_chain(monkeypatch, tmp_path):
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path))
    result = runner.invoke(cli.app, ["ext", "info"])
    assert result.exit_code == 0, result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines()} >= {"compiler", "cuda", "level"}


def test_ext_build_says_which_kernels_cannot_be_had(monkeypatch):
    from loom.native import Unavailable, inventory

    results = [inventory.BuildResult("demo", "kilo", Unavailable("no compiler"), 0.1)]
    monkeypatch.setattr(inventory, "build_all", lambda: iter(results))
    result = runner.invoke(cli.app, ["ext", "build"])
    assert result.exit_code == 1
    assert result.stdout == "demo kilo 0.1 s: unavailable: no compiler\n"
