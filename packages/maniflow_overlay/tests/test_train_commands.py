"""`train`, `status` and `report` as they are typed; what a log shows while a run is at work."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loom.config import resolve
from loom.errors import UserError
from loom.progress import Heartbeat
from maniflow_overlay import embedded
from maniflow_overlay.cli import app
from maniflow_overlay.config import TrainConfig
from maniflow_overlay.evaluation.config import MatrixConfig
from maniflow_overlay.policy.runtime import load_policy
from maniflow_overlay.watchdog import STACKS, Watchdog
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from teachable_store import make_teachable

SHORT = ("--steps", "6", "--batch-size", "8", "log_every=1", "val_every=3", "checkpoint_every=3")


def command(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_teachable(tmp_path_factory.mktemp("store"), episodes=6)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory, one_thread) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("run") / "run"
    done = command("train", "--store", store, "--mode", "current", *SHORT, "--run-dir", run)
    assert done.exit_code == 0, done.output
    return run, done.stdout


def test_a_training_says_what_it_does_and_ends_with_a_table_and_a_report(trained):
    run, said = trained
    assert "55 windows to train on, 11 of 1 episodes kept back" in said
    assert re.search(r"tiny, current, overlay: \d{3},\d{3} parameters on \w+ in \w+; 6 steps", said)
    table = said[said.index("action_mse  action_mae") :]
    for row in ("policy", "mean_action", "hold_position"):
        assert re.search(rf"^{row} +[\d.e-]+ +[\d.e-]+$", table, re.MULTILINE), table
    assert f"report: {run / 'report.html'}" in said
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Open-loop validation" in page
    assert "hold_position (baseline)" in page
    assert page.count("<figcaption>current, as in use") == 4
    assert page.count("<figcaption>current, varied") == 4
    assert "action dimension 2" not in said  # it stands still: not scaled, so nothing to warn of


def test_status_reads_a_run_from_its_directory(trained, tmp_path):
    run, _ = trained
    done = command("status", run)
    assert done.exit_code == 0
    assert done.stdout.startswith("finished, step 6 of 6")
    assert "metric/action_mse" not in done.stdout.split(",")[0]
    assert json.loads(command("status", run, "--json").stdout)["state"] == "finished"
    assert command("status", tmp_path).exit_code == 2


def test_status_of_a_run_at_work_is_one_line_and_follows_it_on_demand(tmp_path):
    beat = Heartbeat(tmp_path, {"phase": "train", "step": 3, "total": 9, "rate": 2.0}, interval=0.2)
    ending = threading.Timer(6.0, lambda: beat.stop(state="finished"))
    ending.start()
    done = command("status", tmp_path)
    assert done.exit_code == 0
    assert done.stdout.startswith("(train) [3/9]")
    assert re.search(r"heartbeat \d s ago", done.stdout)
    assert ending.is_alive()  # it did not wait for the end
    followed = command("status", tmp_path, "--follow")
    assert followed.exit_code == 0
    assert [line.split(",")[0] for line in followed.stdout.splitlines()[1:]] == ["finished"]


def test_the_run_of_another_thread_is_named_as_such(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text('{"thread": "coopcyl"}', encoding="utf-8")
    (other / "config.yaml").write_text("panorama: {width: 1008}\n", encoding="utf-8")
    for words in (
        ("train", "--resume", "--run-dir", other),
        ("eval", "matrix", "--resume", "--run-dir", other),
        ("eval", "matrix", "--policy", other, "--run-dir", tmp_path / "matrix"),
    ):
        said = command(*words)
        assert said.exit_code == 2, said.output
        assert f"{other} is a run of coopcyl, not of maniflow_overlay" in said.stderr
    assert not (tmp_path / "matrix").exists()
    with pytest.raises(UserError, match="is a run of coopcyl"):
        load_policy(other)


def test_a_report_is_written_again_and_says_what_it_left_out(trained, tmp_path):
    run, _ = trained
    page = run / "report.html"
    page.unlink()
    assert command("report", run).exit_code == 0
    assert page.is_file()
    assert command("report", tmp_path / "absent").exit_code == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text('{"thread": "pinpad"}', encoding="utf-8")
    refused = command("report", other)
    assert (refused.exit_code, "is a run of pinpad" in refused.stderr) == (2, True)
    assert not (other / "report.html").exists()
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    for damage in ("{}", '{"metrics": 3}', '{"metrics": {"a": "b"}}', "[", ""):
        (tmp_path / "evaluation").mkdir(exist_ok=True)
        (tmp_path / "evaluation/open_loop.json").write_text(damage, encoding="utf-8")
        done = command("report", tmp_path)
        assert done.exit_code == 2, (damage, done.output)
        assert "open_loop.json" in done.stderr


def test_without_a_store_simulated_episodes_are_recorded_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "EPISODES", 3)
    arguments = ("train", "--steps", "1", "--batch-size", "4")
    first = command(*arguments)
    assert first.exit_code == 0, first.output
    assert "recording 3 episodes" in first.stdout
    second = command(*arguments)
    assert "recording" not in second.stdout
    lost = command("train", "--resume", "--run-dir", "absent")
    assert (lost.exit_code, "no run to resume" in lost.stderr) == (2, True)
    assert lost.stdout == ""
    again = command("train", "--resume", "--steps", "2", "--batch-size", "4")
    assert (again.exit_code, "goes on in" in again.stdout) == (0, True), again.output
    assert (tmp_path / "runs/maniflow_overlay/policy-2/report.html").is_file()


def test_trainings_that_begin_together_record_the_simulated_episodes_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "EPISODES", 3)
    monkeypatch.setattr(embedded, "chosen_scene", lambda wanted, say: "planar")
    said: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        stores = [pool.submit(embedded.embedded_store, said.append) for _ in range(3)]
    assert {str(store.result()) for store in stores} == {"data/maniflow_overlay/planar/store"}
    assert len([line for line in said if "recording" in line]) == 1
    (tmp_path / "data/maniflow_overlay/planar/.lock").unlink()
    embedded.embedded_store(said.append)  # nothing is written, and nothing need be writeable
    assert not (tmp_path / "data/maniflow_overlay/planar/.lock").exists()


def test_wrong_settings_are_refused_in_a_sentence(store, tmp_path):
    cases = {
        "preset": ("--preset", "huge"),
        "add up to 1.25": ("flow_batch_ratio=1.0",),
        "no sample for consistency": ("--batch-size", "3"),
        "preset tiny has no ResNet-18": ("encoder_weights=model.pt",),
        "worker processes are slower": ("num_workers=8",),
        "its teacher": ("use_ema=true",),
        "behind the horizon": ("horizon=4", "n_action_steps=5"),
        "no such file of encoder weights": ("--preset", "spatial", "encoder_weights=absent.pt"),
    }
    for complaint, extra in cases.items():
        done = command("train", "--store", store, *SHORT, "--run-dir", tmp_path / "run", *extra)
        assert done.exit_code == 2, (complaint, done.output)
        assert complaint in done.stderr, (complaint, done.stderr)
        assert "hint: " in done.stderr, complaint
    done = command("train", "--store", tmp_path / "absent", "--run-dir", tmp_path / "other")
    assert done.exit_code == 2
    assert "absent" in done.stderr


def test_a_path_may_begin_at_home(monkeypatch, tmp_path):
    """A shell leaves the tilde alone in `store=~/x` and in a YAML file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["preset=spatial", "store=~/s", "encoder_weights=~/m.pt"]
    config = resolve(TrainConfig, None, words).config
    assert (config.store, config.encoder_weights) == (tmp_path / "s", tmp_path / "m.pt")
    assert resolve(MatrixConfig, None, ["runs=[~/r]"]).config.runs == (tmp_path / "r",)


def test_settings_have_the_notes_values_where_the_notes_have_them():
    config = resolve(TrainConfig, None, ["preset=parity", "num_epochs=501"]).config
    assert (config.batch_size, config.seed, config.n_obs_steps) == (64, 0, 2)
    assert (config.flow_batch_ratio, config.consistency_batch_ratio) == (0.75, 0.25)
    assert config.num_inference_steps == 10
    assert (config.betas, config.weight_decay, config.size.lr) == ((0.9, 0.95), 1e-3, 1e-4)
    assert config.size.horizon == 16
    assert config.total_steps(17_057) == 501 * 267
    assert config.learning_rate(501 * 267).warmup == 500
    assert list(config.notices()) == []
    both = resolve(TrainConfig, None, ["num_epochs=501"], flags={"steps": 2})
    assert both.notices == ("num_epochs 501 decides the length: steps 2 is not used",)
    with pytest.raises(UserError, match="was removed"):
        resolve(TrainConfig, None, ["persistent_workers=false"])


# While a run is at work ---------------------------------------------------------------------------


def test_a_step_that_does_not_end_is_spoken_of_and_leaves_all_stacks(tmp_path):
    said: list[str] = []
    warned: list[str] = []

    def stuck_in_this_very_place(watchdog: Watchdog) -> None:
        deadline = time.monotonic() + 5
        while not (warned and len(said) >= 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        watchdog.step_ended(8)

    limits = {"limit_s": 0.3, "silence_s": 0.1, "long_step_s": 0.0}
    with Watchdog(tmp_path, said.append, warned.append, **limits) as watchdog:
        watchdog.step_ended(7)
        stuck_in_this_very_place(watchdog)
    assert "since step 7 ended" in said[0]
    assert len(warned) == 1
    assert str(tmp_path / STACKS) in warned[0]
    stacks = (tmp_path / STACKS).read_text(encoding="utf-8")
    assert "stuck_in_this_very_place" in stacks
    assert "since step 7 ended" in stacks


class Clock:
    """Time that passes when it is told to, and what a watchdog said at which second."""

    def __init__(self, folder: Path, limit_s: float = 300.0) -> None:
        self.now, self.said, self.warned, self.folder = 100.0, [], [], folder
        self.watchdog = Watchdog(
            folder,
            lambda line: self.said.append((self.now - 100, line)),
            lambda line: self.warned.append(self.now - 100),
            limit_s=limit_s,
            clock=lambda: self.now,
        )

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            self.watchdog.look()


def test_a_long_step_is_spoken_of_after_each_eight_and_a_half_seconds_of_silence(tmp_path):
    clock = Clock(tmp_path)
    clock.wait(10)
    clock.watchdog.step_ended(3)
    clock.wait(30)
    assert [when for when, _ in clock.said] == [8.5, 17.0, 25.5, 34.0]
    assert [line for _, line in clock.said[:2]] == [
        "[wait] 8 s since the run began; still at work",
        "[wait] 7 s since step 3 ended; still at work",
    ]
    # With the thirtieth of a silence between two looks it stays below the ten seconds promised.
    assert 8.5 * (1 + 1 / 30) < 10


def test_a_line_in_the_log_puts_the_next_word_off(tmp_path):
    clock = Clock(tmp_path)
    clock.wait(5)
    (tmp_path / "log.txt").write_text("a line of progress", encoding="utf-8")
    clock.wait(13)
    assert [when for when, _ in clock.said] == [5.25 + 8.5]


@pytest.mark.parametrize(("step_s", "words"), [(1.25, 0), (2.0, 2)])
def test_steps_that_end_in_time_for_the_progress_line_are_not_spoken_of(tmp_path, step_s, words):
    clock = Clock(tmp_path)
    for step in range(round(20 / step_s)):
        clock.wait(step_s)
        clock.watchdog.step_ended(step)
    assert len(clock.said) == words


def test_stacks_are_written_once_for_each_step_that_exceeds_the_limit(tmp_path):
    clock = Clock(tmp_path, limit_s=20.0)
    clock.wait(50)
    clock.watchdog.step_ended(1)
    clock.wait(19.75)
    assert clock.warned == [20.0]
    clock.wait(30)
    assert clock.warned == [20.0, 70.0]
    stacks = (tmp_path / STACKS).read_text(encoding="utf-8")
    assert stacks.count("no step ended in the 20.0 s since") == 2
    assert "since step 1 ended" in stacks


def test_a_run_whose_steps_end_is_left_in_peace(tmp_path):
    said: list[str] = []
    limits = {"limit_s": 2.0, "silence_s": 0.1, "long_step_s": 1.0}
    with Watchdog(tmp_path, said.append, said.append, **limits) as watchdog:
        for step in range(50):
            time.sleep(0.05)
            watchdog.step_ended(step)
    assert said == []
    assert not (tmp_path / STACKS).exists()


def test_nothing_is_said_while_the_log_tells_enough(tmp_path):
    said: list[str] = []
    with Watchdog(tmp_path, said.append, said.append, limit_s=9, silence_s=1.0, long_step_s=0):
        for _ in range(40):
            time.sleep(0.05)
            (tmp_path / "log.txt").write_text("a line of progress", encoding="utf-8")
    assert said == []


@pytest.mark.slow
def test_a_run_in_a_pipe_prints_a_line_every_ten_seconds_and_another_process_reads_it(
    store, tmp_path
):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "maniflow_overlay", "train", "--store", str(store), "--steps",
            "1000000", "--run-dir", str(run), "checkpoint_every=1000000", "val_every=1000000",
        ],
        stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    descriptor, content, times, seen = process.stdout.fileno(), b"", [], []
    began = time.monotonic()
    try:
        while content.count(b"(maniflow_overlay) [") < 5 and time.monotonic() - began < 150:
            if select.select([descriptor], [], [], 0.5)[0]:
                content += os.read(descriptor, 65536)
                times.append(time.monotonic())
            if len(times) > 3:
                status = json.loads(command("status", run, "--json").stdout)
                seen.append((status["state"], status.get("step"), status["heartbeat"]))
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=120)
    assert max(b - a for a, b in zip(times[:-1], times[1:], strict=True)) < 10.0
    lines = (content + rest).decode().splitlines()
    assert b"\r" not in content
    assert sum(line.startswith("(maniflow_overlay) [") for line in lines) >= 4
    states, steps, beats = zip(*seen, strict=True)
    assert set(states) == {"running"}
    assert sorted(beats) == list(beats)
    assert len(set(steps)) > 3
    done = command("status", run)
    assert done.stdout.startswith("stopped, step")
    assert "SIGTERM" in done.stdout
