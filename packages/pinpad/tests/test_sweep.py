"""Sweeps with a stand-in for the training; `test_sweep_commands.py` holds the real one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import pytest
from filelock import FileLock
from loom import processes
from loom.config import resolve
from loom.doctor import Finding
from loom.errors import UserError
from pinpad.data.collect import collect
from pinpad.data.players import parse_mix
from pinpad.sweep import execute, plan, report
from pinpad.sweep.conditions import BOUNDARY4
from pinpad.sweep.plan import SweepSettings, jobs, members
from pinpad.sweep.state import read_sweep
from pinpad.sweep.status_file import read_status_file
from pinpad.train_config import PRESETS, TrainConfig

from packages.pinpad.tests.sweep_command import SMALL, pinpad

STUB = Path(__file__).with_name("stub_pinpad.py")


def conditions(path, *names):
    path.write_text("".join(f"{name}: {{dynamics_type: rssm}}\n" for name in names))
    return path


def states(root):
    return {run.name: (run.state, run.stage) for run in read_sweep(root).runs}


# --- what is run ---------------------------------------------------------------------------------


def test_the_conditions_are_those_of_the_first_experiments():
    keys = ("max_seg_len", "boundary_force_scale", "boundary_temp", "boundary_rate")
    values = {
        name: tuple(each.get(f"vta_{key}") for key in (*keys, "boundary_scale"))
        for name, each in BOUNDARY4.items()
        if each["dynamics_type"] == "vta"
    }
    assert list(BOUNDARY4)[0] == "pinpad_rssm"
    assert values == {
        "pinpad_vta_force0_t1": (30, 0, 1, 0, 0),
        "pinpad_vta_force10_t1": (30, 10, 1, 0, 0),
        "pinpad_vta_force0_t2_rate": (50, 0, 2, 0.1, 0.5),
    }


def test_a_rule_that_never_acts_in_training_is_said():
    def said(*overrides):
        return "".join(resolve(TrainConfig, None, overrides).notices)

    rule = ["dynamics_type=vta", "vta_boundary_force_scale=10", "vta_max_seg_len=30"]
    assert "batch_length 30 is not above vta_max_seg_len 30" in said(*rule, "batch_length=30")
    assert said(*rule, "batch_length=31") == ""
    assert said("dynamics_type=vta", "vta_max_seg_len=30", "batch_length=16") == ""
    force10 = [f"{key}={value}" for key, value in BOUNDARY4["pinpad_vta_force10_t1"].items()]
    assert said(*plan.EMBEDDED, *force10) == ""


def test_each_condition_and_seed_is_trained_judged_and_drawn(tmp_path):
    settings = SweepSettings(seeds=(3, 5), vta_eval_every=7, timeout_s=60, memory_mb=900)
    listed = {job.name: job for job in jobs(settings, tmp_path).jobs}
    assert len(listed) == 2 * 4 * 3
    assert next(iter(listed)) == "pinpad_rssm_seed3.train"
    train = listed["pinpad_vta_force10_t1_seed5.train"]
    words = list(train.command)
    assert {"seed=5", "vta_boundary_force_scale=10.0", "eval_every=7", "--resume"} <= set(words)
    assert (train.timeout_s, train.memory_mb) == (60, 900)
    assert "eval_every=7" not in listed["pinpad_rssm_seed5.train"].command
    judge, draw = (listed[f"pinpad_vta_force10_t1_seed5.{stage}"] for stage in ("judge", "draw"))
    assert judge.after == [train.name]
    assert judge.inputs == train.outputs
    assert draw.after == [judge.name]
    assert draw.inputs == judge.outputs


def test_world_models_learn_from_the_same_episodes_and_agents_from_their_own(here):
    def words(root, *overrides):
        settings = SweepSettings(overrides=(*SMALL, *overrides), episodes=2)
        execute.begin(settings, root, None)
        plan.record(settings, root)
        return [job.command for job in jobs(settings, root).jobs if job.name.endswith("train")]

    for train in words(here / "models", "wm_only=true"):
        assert f"data={here / 'models' / 'episodes'}" in train
        assert f"heldout={here / 'models' / 'heldout'}" in train
    assert len(list((here / "models" / "episodes").glob("*.npz"))) == 2
    for train in words(here / "agents"):
        assert not any(word.startswith("data=") for word in train)
        assert f"heldout={here / 'agents' / 'heldout'}" in train


def test_a_run_of_a_sweep_is_not_warned_of_what_the_sweep_itself_sets(here):
    root = here / "quiet"
    settings = SweepSettings(overrides=(*SMALL, "wm_only=true"), episodes=2)
    execute.begin(settings, root, None)
    plan.record(settings, root)
    for job in jobs(settings, root).jobs:
        if job.name.endswith("train"):
            own = job.command[list(job.command).index("--resume") + 1 :]
            resolved = resolve(TrainConfig, root / "base.yaml", own, groups=PRESETS)
            assert not [each for each in resolved.notices if each.endswith("(override)")]
            assert resolved.config.wm_only


def test_the_variables_of_the_earlier_script_are_defaults(here, monkeypatch):
    seen = {}

    def run_sweep(settings, root, **options):
        seen.update(settings=settings, root=root, **options)
        return True

    monkeypatch.setattr(execute, "run_sweep", run_sweep)
    variables = {"LOGROOT": "logdir/full10", "TASK": "pinpad_eight", "SEEDS": "0 2"}
    variables |= {"SKIP_RSSM": "1", "VTA_EVAL_EVERY": "2000", "PRETRAIN": "10"}
    variables |= {"RUN_LOG": "run.log", "STATUS_FILE": "status.env"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = pinpad("sweep", "updates=5")
    assert done.exit_code == 0, done.output
    settings = seen["settings"]
    assert (settings.task, settings.seeds) == ("pinpad_eight", (0, 2))
    assert (settings.vta_eval_every, settings.pretrain) == (2000, 10)
    assert "pretrain: 10" in Path("logdir/full10/base.yaml").read_text()
    # The earlier script counted four runs for each seed even where it left out the RSSM.
    assert len(members(settings)) == 6
    assert "pinpad_rssm" not in settings.conditions
    assert "pinpad_vta_force10_t1: [config] batch_length 16 is not above" in done.output
    assert seen["root"] == Path("logdir/full10")
    assert (seen["run_log"], seen["status_file"]) == (Path("run.log"), Path("status.env"))


def test_every_sweep_gets_a_fresh_log_root(here):
    first = execute.new_log_root()
    execute.begin(SweepSettings(overrides=SMALL), first, None)
    assert first.parent == Path("logdir")
    assert execute.newest_log_root() == first
    done = pinpad("sweep", "--logroot", first, "updates=5")
    assert done.exit_code == 2
    assert "is not empty" in done.output
    assert "--resume" in done.output


def test_a_log_that_the_shell_has_opened_in_the_log_root_is_no_other_sweep(here):
    # logdir/full3: `pinpad sweep > logdir/full3/run.log` makes it before the sweep begins
    root = here / "full3"
    root.mkdir()
    (root / "run.log").write_text("")
    execute.begin(SweepSettings(overrides=SMALL), root, None)
    assert (root / "sweep_settings.yaml").is_file()
    other = here / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        execute.begin(SweepSettings(overrides=SMALL), other, None)


def test_a_sweep_finds_its_data_from_any_folder_and_says_where_they_have_gone(here, monkeypatch):
    collect(here / "mine", "three", parse_mix("babble"), 1, length=20, size=16, seed=0)
    settings = execute.settings_from(
        {"data": Path("mine"), "overrides": ("wm_only=true", *SMALL), "episodes": 1}
    )
    execute.begin(settings, here / "root", None)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    settings = execute.go_on(here / "root", {})
    plan.record(settings, here / "root")
    assert f"data={here / 'mine'}" in jobs(settings, here / "root").jobs[0].command
    (here / "mine").rename(here / "gone")
    with pytest.raises(UserError, match="mine: no episodes"):
        plan.record(settings, here / "root")


def test_data_of_another_size_are_refused_before_anything_is_made(here):
    collect(here / "large", "three", parse_mix("babble"), 1, length=20, size=64, seed=0)
    done = pinpad("sweep", "--data", "large", "--logroot", "root", "wm_only=true", *SMALL)
    assert done.exit_code == 2
    assert "held-out frames are (16, 16, 3), those learnt from (64, 64, 3)" in done.output
    assert "size=64" in done.output
    assert not (here / "root").exists()


def test_the_run_log_gets_the_lines_of_the_report_too(here, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda root, say: say("\nreward:\ntwo lines"))
    file = conditions(here / "c.yaml", "good")
    done = pinpad("sweep", "--conditions", file, "--run-log", "a b/run.log", *SMALL)
    assert done.exit_code == 0, done.output
    lines = Path("a b/run.log").read_text().splitlines()
    assert lines[0].startswith("[sweep] 1 runs in")
    assert lines[-3:-1] == ["reward:", "two lines"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upd=3"], "did you mean"),
        (["--task", "pinpad_nine", "updates=3"], "pinpad_nine"),
        (["--seeds", "0,x"], "is no list of seeds"),
        (["--seeds", "0,0"], "holds a seed twice"),
        (["seed=3"], "give --seeds"),
        (["vta_max_seg_len=80"], "is what pinpad_vta_force0_t1"),
        (["--pretrain", "5", "wm_only=true"], "nobody acts"),
        (["--data", "nowhere", "wm_only=true"], "nowhere: no episodes"),
        (["--preset", "cpu_large"], "cpu_large"),
        (["updates=3", "--retry-failed"], "--resume"),
        (["--resume", "--logroot", "nowhere"], "no sweep is in it"),
        (["--resume"], "no sweep is in it"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_made(here, arguments, message):
    done = pinpad("sweep", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert not (here / "logdir").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 3\n", "condition a is not a mapping"),
        ("a: {x: [1]}\n", "condition a is not a mapping"),
        ("a: {dynamics_type: gru}\n", "condition a: "),
        ("a: {name: b}\n", "condition a sets name"),
        ("a/b: {dynamics_type: rssm}\n", "cannot be a file name"),
        ("{}\n", "no conditions"),
        ("- a\n", "conditions.yaml"),
    ],
)
def test_wrong_conditions_are_named(here, text, message):
    (here / "conditions.yaml").write_text(text)
    done = pinpad("sweep", "--conditions", "conditions.yaml", *SMALL)
    assert done.exit_code == 2, done.output
    assert message in done.output


def test_an_environment_that_does_not_pay_is_not_trained_in(here, monkeypatch):
    broken = Finding("fail", "the oracle earns nothing in eight", "reinstall the package")
    monkeypatch.setattr(execute, "check_oracle", lambda: broken)
    done = pinpad("sweep", *SMALL)
    assert done.exit_code == 2
    assert "the oracle earns nothing in eight" in done.output
    assert not list(here.glob("logdir/*/logs"))


# --- what becomes of it --------------------------------------------------------------------------


@pytest.fixture
def broken_sweep(here):
    names = ("segfault", "nan", "hang", "leak", "good")
    file = conditions(here / "c.yaml", *names)
    root = here / "root"
    done = pinpad(
        *("sweep", "--conditions", file, "--logroot", root, "--run-log", "run.log", *SMALL),
        *("--timeout", "4", "--memory", "120", "--episodes", "2", "--jobs", "5"),
    )
    return root, done


def test_a_run_that_dies_in_any_way_ends_no_other_one(broken_sweep, here):
    root, done = broken_sweep
    assert done.exit_code == 1, done.output
    assert states(root) == {
        "segfault_seed0": ("failed", "train"),
        "nan_seed0": ("failed", "train"),
        "hang_seed0": ("failed", "train"),
        "leak_seed0": ("failed", "train"),
        "good_seed0": ("done", "draw"),
    }
    why = {run.name: run.detail for run in read_sweep(root).runs}
    assert "segmentation fault" in why["segfault_seed0"]
    assert why["nan_seed0"] == "exit status 2: error: the loss is not finite at step 3"
    assert why["hang_seed0"] == "timed out after 4 s"
    assert "the limit is 120 MB" in why["leak_seed0"]
    for run in ("segfault", "nan", "hang", "leak"):
        assert f"{run}_seed0.judge: skipped, missing {run}_seed0/checkpoints" in done.output
    assert "good_seed0.draw: done" in (here / "run.log").read_text()
    assert "hang_seed0: failed (timed out after 4 s)" in (root / "report.html").read_text()

    shown = pinpad("monitor", root, "--once")
    assert shown.exit_code == 1
    for text in ("FAILED", "timed out after 4 s", "5 of 5 ended, 4 failed", "segmentation fault"):
        assert text in shown.output
    content = json.loads(pinpad("monitor", root, "--once", "--json").output)
    assert [run["state"] for run in content["runs"]] == ["failed"] * 4 + ["done"]
    assert content["percent"] == 100

    fields = read_status_file(root / "pinpad_status.env")
    keys = "run_name run_index total_runs step steps_target percent updated"
    assert list(fields)[:7] == keys.split()
    assert (fields["state"], fields["ok"], fields["failed"]) == ("failed", "1", "4")
    assert (fields["run_name"], fields["run_index"]) == ("good_seed0", "5")
    assert (fields["step"], fields["steps_target"]) == ("20", "20")


def test_what_failed_is_run_again_only_on_request(broken_sweep, here, monkeypatch):
    root, _ = broken_sweep
    again = pinpad("sweep", "--resume", "--logroot", root)
    assert "hang_seed0.train: skipped, failed before: timed out after 4 s" in again.output
    attempts = json.loads((root / "status.json").read_text())["jobs"]
    assert attempts["hang_seed0.train"]["attempts"] == 1
    pinpad("sweep", "--resume", "--logroot", root, "--retry-failed", "--jobs", "5")
    attempts = json.loads((root / "status.json").read_text())["jobs"]
    assert attempts["hang_seed0.train"]["attempts"] == 2
    assert attempts["good_seed0.train"]["attempts"] == 1


def begin_slow_sweep(here, first="slow_one"):
    """Start a sweep of slow trainings in a process of its own; return it and the log root."""
    root = here / "root"
    code = f"""
import sys
from pathlib import Path
from loom.doctor import Finding
from pinpad.sweep import execute, plan
plan._pinpad = lambda *words: [sys.executable, "-S", {str(STUB)!r}, *words]
execute.check_oracle = lambda: Finding("ok", "")
from pinpad.cli import main
main()
"""
    file = conditions(here / "c.yaml", first, "slow_two")
    arguments = ["sweep", "--conditions", str(file), "--logroot", str(root), "--episodes", "1"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments, "--jobs", "1", *SMALL])
    deadline = time.monotonic() + 60
    while read_step(root) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return process, root


def read_step(root):
    try:
        return read_sweep(root).runs[0].step
    except UserError:
        return 0


@pytest.mark.parametrize("how", ["ctrl-c", "stop"])
def test_a_stopped_sweep_is_completed_by_resume(here, how):
    process, root = begin_slow_sweep(here)
    running = json.loads(pinpad("monitor", root, "--once", "--json").output)
    assert (running["state"], running["runs"][0]["state"]) == ("running", "running")
    assert 0 < running["percent"] < 50
    if how == "stop":
        done = pinpad("stop", root)
        assert done.exit_code == 0, done.output
        assert "--resume" in done.output
    else:
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == (130 if how == "ctrl-c" else 143)
    assert states(root)["slow_one_seed0"] == ("interrupted", "train")
    assert states(root)["slow_two_seed0"] == ("waiting", "train")
    fields = read_status_file(root / "pinpad_status.env")
    assert fields["state"] == "interrupted"
    nothing = pinpad("stop", root)
    assert nothing.exit_code == 2
    assert "nothing is running" in nothing.output

    done = pinpad("sweep", "--resume")  # the newest one under logdir: there is none
    assert done.exit_code == 2
    done = pinpad("sweep", "--resume", "--logroot", root, "--seeds", "1")
    assert done.exit_code == 2
    assert "seeds" in done.output
    done = pinpad("sweep", "--resume", "--logroot", root, "--seeds", "0", "--jobs", "2")
    assert done.exit_code == 0, done.output
    for name in ("slow_one_seed0", "slow_two_seed0"):
        trace = (root / name / "trace").read_text().split()
        assert trace == [str(step) for step in range(1, 21)]


def test_a_sweep_of_another_machine_is_not_stopped_from_here(here):
    execute.begin(SweepSettings(overrides=SMALL), here / "root", None)
    bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    status = {"state": "running", "heartbeat": time.time(), "pid": bystander.pid, "jobs": {}}
    (here / "root" / "status.json").write_text(json.dumps(status | {"host": "elsewhere"}))
    lock = FileLock(here / "root" / "sweep.lock")
    with lock, pytest.raises(UserError, match="is run by elsewhere"):
        execute.stop(here / "root", patience_s=0.5)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_sweep_runs_as_an_array_of_slurm(here, monkeypatch):
    commands = fake_slurm.install(here / "bin")
    monkeypatch.setenv("FAKE_SLURM", str(commands))
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    listed = conditions(here / "listed.yaml", "one", "segfault_two")
    arguments = ("--logroot", here / "root", "--conditions", listed, *SMALL)
    unknown = pinpad("sweep", "--executor", "slurm", *arguments)
    assert unknown.exit_code == 2
    assert not (here / "root").exists()
    done = pinpad("sweep", "--executor", "sbatch", *arguments)
    assert done.exit_code == 1, done.output
    assert states(here / "root") == {
        "one_seed0": ("done", "draw"),
        "segfault_two_seed0": ("failed", "train"),
    }
    assert "#SBATCH --array=0,1" in (here / "root" / "array.sbatch").read_text()


def test_a_killed_sweep_is_shown_as_dead_and_what_it_left_running_is_ended(here):
    process, root = begin_slow_sweep(here, "stuck_one")
    process.kill()
    process.wait()
    child = json.loads((root / "status.json").read_text())["jobs"]["stuck_one_seed0.train"]["pid"]
    status = json.loads((root / "status.json").read_text())
    (root / "status.json").write_text(json.dumps(status | {"heartbeat": time.time() - 31}))
    shown = pinpad("monitor", root, "--once")
    assert shown.exit_code == 1
    assert "DEAD: no sign of life from process" in shown.output
    os.kill(child, 0)
    done = pinpad("stop", root)
    assert "1 runs that it had left behind were ended" in done.output
    deadline = time.monotonic() + 20
    while processes.start_time(child) is not None and not is_zombie(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_sweep_says_how_short_it_is_where_nothing_is_asked(here, monkeypatch):
    monkeypatch.setattr(execute, "run_sweep", lambda settings, root, **options: True)
    done = pinpad("sweep")
    assert "short by default (wm_only=true updates=" in done.output


def test_the_demo_is_a_sweep_of_two_models_in_a_log_root_of_its_own(here):
    done = pinpad("demo")
    assert done.exit_code == 0, done.output
    (root,) = here.glob("logdir/demo_*")
    assert states(root) == {"rssm_seed0": ("done", "draw"), "vta_seed0": ("done", "draw")}
    assert "CPU-seconds in all" in done.output
    assert (root / "report.html").is_file()
