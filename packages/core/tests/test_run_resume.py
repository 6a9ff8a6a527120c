"""A resume goes on with the same run or says, key by key, why it cannot."""

import hashlib
import json
import math

import pytest
from loom import provenance, run_directory
from loom.config import Config, read_yaml, resolve
from loom.errors import UserError
from loom.record import read_records
from loom.run import Run

from packages.core.tests.small_run import Settings, Train, digest, facts, opened


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


def test_resume_and_archive_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="not both"):
        opened(tmp_path, resume=True, archive=True)


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path):
    with pytest.raises(UserError, match=r"there is no run|no such file"):
        opened(tmp_path / "typo", resume=True, source=resolve(Settings))
    assert not (tmp_path / "typo").exists()


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
        run_directory.settings_of(None, directory, resume=True, thread="demo")
    with pytest.raises(UserError, match=message):
        opened(directory, resume=True)


def test_a_resume_names_the_thread_of_another_threads_run(finished):
    assert run_directory.settings_of(None, finished, resume=True, thread="featdistill")
    with pytest.raises(UserError, match="is a run of featdistill, not of coopcyl"):
        run_directory.settings_of(None, finished, resume=True, thread="coopcyl")
    with pytest.raises(UserError, match="is a run of featdistill, not of coopcyl"):
        Run.open("coopcyl", Settings, directory=finished, resume=True, quiet=True)


@pytest.mark.parametrize("facts", [None, "not JSON", "[]", "{}"])
def test_a_directory_that_does_not_say_whose_run_it_is_passes_as_anyones(tmp_path, facts):
    if facts is not None:
        (tmp_path / "run.json").write_text(facts)
    run_directory.require_thread(tmp_path, "coopcyl")


def test_settings_come_from_the_named_file_or_on_a_resume_from_the_run(finished, tmp_path):
    file = tmp_path / "mine.yaml"
    assert run_directory.settings_of(file, finished, resume=True, thread="featdistill") == file
    assert (
        run_directory.settings_of(None, finished, resume=True, thread="featdistill")
        == finished / "config.yaml"
    )
    assert run_directory.settings_of(None, finished, resume=False, thread="featdistill") is None
    assert run_directory.settings_of(None, None, resume=True, thread="featdistill") is None
