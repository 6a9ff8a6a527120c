"""Every command line fails in the same way, starts without torch, shows origins."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytest
import typer
from loom import cli
from loom.__main__ import app
from loom.config import Config
from loom.drawing import print_json
from loom.errors import GateMissed, UserError
from loom.files import write_json
from loom.schedule import Constant
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
        "import sys; from loom.__main__ import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', [m for m in ('torch', 'pydantic', 'numpy', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout


def test_a_closed_pipe_is_quiet(tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    write_json(tmp_path / "runs" / "a" / "status.json", {"state": "finished"})
    loom = "import sys; from loom.__main__ import main; sys.argv[0] = 'loom'; main()"
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


def test_config_show_gives_every_value_its_origin(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  lr: 5e-4\n")
    result = runner.invoke(app, ["config", "show", str(path), "seed=3", "--model", MODEL])
    lines = [line.split("  # ") for line in result.stdout.splitlines()]
    assert {key.strip(): origin for key, origin in lines} == {
        "seed=3": "override seed=3",
        "train.lr=0.0005": f"{path}:2",
        "train.max_steps=100": "default",
    }
    assert "--model" in runner.invoke(app, ["config", "show", str(path)]).stderr
    for wrong in ("loom.cli:app", "nowhere:X", "loom.cli:nothing"):
        shown = runner.invoke(app, ["config", "show", "--model", wrong])
        assert shown.exit_code == 2


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class Endless(Config):
    ceiling: float = math.inf

    def schedules(self):
        return {"ceiling": Constant(self.ceiling)}


def test_infinity_is_text_in_what_programs_read(monkeypatch):
    monkeypatch.setattr(cli, "_import_model", lambda name: Endless)
    shown = runner.invoke(app, ["config", "show", "--model", "x", "--json"]).stdout
    assert json.loads(shown, parse_constant=refuse)["settings"] == {"ceiling": "Infinity"}
    shown = runner.invoke(app, ["schedule", "--model", "x", "--steps", "1", "--json"]).stdout
    assert json.loads(shown, parse_constant=refuse)["ceiling"][0] == [0, "Infinity"]


def test_a_name_that_is_not_utf8_is_json_too(capsys):
    print_json({"path": os.fsdecode(b"caf\xe9"), "phase": "特徴"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"path": "caf\udce9", "phase": "特徴"}
    assert "特徴" in out


def test_config_show_knows_the_groups_of_its_application(tmp_path):
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "high.yaml").write_text("train:\n  max_steps: 50\n")
    grouped = typer.Typer()
    cli.add_config_commands(grouped, MODEL, groups=tmp_path)
    shown = runner.invoke(grouped, ["config", "show", "speed=high"]).stdout
    assert "train.max_steps=50" in shown
    values = runner.invoke(grouped, ["schedule", "speed=high", "--json"]).stdout
    assert json.loads(values)["train.lr"][-1] == [50, 0.0]
    wrong = runner.invoke(grouped, ["config", "show", "speed=low"])
    assert isinstance(wrong.exception, UserError)
    assert wrong.exception.hint == "it has: high"


def test_config_show_of_a_run_needs_no_model(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 4\n")
    write_json(tmp_path / "run.json", {"config_origins": {"seed": "demo.yaml:1"}})
    result = runner.invoke(app, ["config", "show", str(tmp_path)])
    assert result.stdout == "seed=4  # demo.yaml:1\n"
    found = json.loads(runner.invoke(app, ["config", "show", str(tmp_path), "--json"]).stdout)
    assert found == {"settings": {"seed": 4}, "origins": {"seed": "demo.yaml:1"}}


def test_schedule_draws_what_changes_and_its_values_are_those_of_the_config():
    arguments = ["schedule", "train.max_steps=50", "--model", MODEL]
    values = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)["train.lr"]
    assert values[0] == [0, 1.0]
    assert values[-1] == [50, 0.0]
    assert all(value == 1 - step / 50 for step, value in values)
    drawn = runner.invoke(app, arguments).stdout
    assert drawn.startswith("train.lr  ███")
    assert "1 at 0 -> 0 at 50" in drawn


def test_a_schedule_of_nothing_says_so_and_is_no_error():
    arguments = ["schedule", "--model", "loom.config:Config"]
    done = runner.invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (0, "nothing in this config changes over training\n")
    assert runner.invoke(app, [*arguments, "--json"]).stdout == "{}\n"


def test_a_table_for_machines_is_a_list_of_rows_by_heading(capsys):
    from loom.drawing import print_table

    print_table(("run", "loss"), [("a", 0.25), ("b", None)], as_json=True)
    rows = [{"run": "a", "loss": 0.25}, {"run": "b", "loss": None}]
    assert json.loads(capsys.readouterr().out) == rows


def test_ext_info_is_said_to_machines_too(monkeypatch, tmp_path):
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path))
    found = json.loads(runner.invoke(app, ["ext", "info", "--json"]).stdout)
    assert {"compiler", "cuda", "level", "artefacts"} <= found.keys()
    assert found["cache"].startswith(str(tmp_path))


def test_ext_info_names_the_tool_chain(monkeypatch, tmp_path):
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path))
    result = runner.invoke(app, ["ext", "info"])
    assert result.exit_code == 0, result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines()} >= {"compiler", "cuda", "level"}


def test_ext_build_says_which_kernels_cannot_be_had(monkeypatch):
    from loom.native import Unavailable, inventory

    results = [inventory.BuildResult("demo", "kilo", Unavailable("no compiler"), 0.1)]
    monkeypatch.setattr(inventory, "build_all", lambda: iter(results))
    result = runner.invoke(app, ["ext", "build"])
    assert result.exit_code == 1
    assert result.stdout == "demo kilo 0.1 s: unavailable: no compiler\n"
    result = runner.invoke(app, ["ext", "build", "--json"])
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert (row["name"], row["built"], row["result"]) == ("kilo", False, "unavailable: no compiler")
