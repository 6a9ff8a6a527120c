"""The doctor finds what is wrong, says what mends it, and survives a broken machine."""

import json
import resource
import shutil
import stat
from pathlib import Path

import pytest
from loom import doctor, processors
from loom.doctor import Check, Finding
from loom.errors import UserError


def test_a_check_that_raises_is_a_failure_and_the_others_still_run():
    def broken() -> Finding:
        raise ZeroDivisionError("odd machine")

    def refused() -> Finding:
        raise UserError("LOOM_ISA=x", hint="unset it")

    checks = [Check("a", broken), Check("b", refused), Check("c", lambda: Finding("ok", "fine"))]
    outcomes = doctor.run_checks(checks)
    assert [each.finding.level for each in outcomes] == ["fail", "fail", "ok"]
    assert "ZeroDivisionError: odd machine" in outcomes[0].finding.detail
    assert outcomes[1].finding == Finding("fail", "LOOM_ISA=x", "unset it")


def test_every_thread_brings_its_checks_and_a_broken_one_hides_no_other(monkeypatch):
    class Point:
        def __init__(self, name: str, load) -> None:
            self.name, self.value, self.load = name, f"{name}.doctor:checks", load

        def __lt__(self, other: "Point") -> bool:
            return self.name < other.name

    def broken():
        raise ImportError("no module named x")

    sound = [Check("scene", lambda: Finding("ok", "drawn"))]
    points = [Point("two", lambda: lambda: sound), Point("one", broken)]
    asked = []
    monkeypatch.setattr(
        doctor.importlib.metadata, "entry_points", lambda group: asked.append(group) or points
    )
    outcomes = doctor.run_checks(doctor.thread_checks())
    assert asked == ["loom.doctor"]
    assert [(each.name, each.finding.level) for each in outcomes] == [
        ("one: import", "fail"),
        ("two: scene", "ok"),
    ]
    assert "no module named x" in outcomes[0].finding.detail


def test_the_threads_are_found_by_their_entry_points():
    import importlib.metadata

    found = {point.name for point in importlib.metadata.entry_points(group="loom.doctor")}
    assert found == {"coopcyl", "featdistill", "pinpad", "end2race", "maniflow-overlay"}


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_only_a_failure_changes_the_exit_code(level, code, capsys):
    outcomes = doctor.run_checks([Check("disk", lambda: Finding(level, "3 GB", "free some"))])
    assert doctor.report(outcomes) == code
    text = capsys.readouterr().out
    assert ("-> free some" in text) == (level != "ok")
    assert doctor.report(outcomes, as_json=True) == code
    assert json.loads(capsys.readouterr().out) == [
        {"name": "disk", "level": level, "detail": "3 GB", "fix": "free some"}
    ]


def test_every_finding_that_is_not_ok_has_a_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "probe_torch", lambda: "No module named 'torch'")
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (9, 0))
    for each in ("CACHE", "DISK", "SHARED_MEMORY"):
        monkeypatch.setattr(doctor, f"LEAST_{each}_BYTES", 1 << 60)
    outcomes = doctor.run_checks(doctor.core_checks())
    levels = {each.name: each.finding.level for each in outcomes}
    assert levels["python"] == levels["torch"] == "fail"
    assert levels["compiler"] == levels["kernel cache"] == levels["disk"] == "warn"
    assert all(each.finding.fix for each in outcomes if each.finding.level != "ok")


def test_a_torch_that_crashes_or_cannot_be_imported_is_a_failure(tmp_path, monkeypatch):
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho 'OSError: libc10.so: cannot open' >&2\nexit 1\n")
    crash.chmod(crash.stat().st_mode | stat.S_IXUSR)
    assert doctor.probe_torch(str(crash)) == "OSError: libc10.so: cannot open"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    doctor.probe_torch.cache_clear()
    assert doctor.probe_torch(str(crash)) == "the process ended with -11"
    assert "No such file" in doctor.probe_torch(str(tmp_path / "gone"))


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    facts = {"version": "2.15", "cuda": None, "gpus": [], "threads": 2}
    monkeypatch.setattr(doctor, "probe_torch", lambda: facts)
    monkeypatch.setattr(doctor, "_driver_gpus", lambda: ["NVIDIA RTX A4500, 550.54"])
    finding = doctor.check_gpu()
    assert finding.level == "warn"
    assert "RTX A4500" in finding.detail
    assert "torch build" in finding.fix
    monkeypatch.setattr(doctor, "_driver_gpus", list)
    assert doctor.check_gpu().level == "ok"


def test_more_threads_than_processors_is_a_warning_with_the_number_to_set(monkeypatch):
    monkeypatch.setattr(processors, "usable_processors", lambda: 2)
    monkeypatch.setattr(doctor, "probe_torch", lambda: {"threads": 64})
    finding = doctor.check_processors()
    assert finding.level == "warn"
    assert finding.fix == "export OMP_NUM_THREADS=2"
    monkeypatch.setattr(doctor, "probe_torch", lambda: {"threads": 2})
    assert doctor.check_processors().level == "ok"
    monkeypatch.setattr(doctor, "probe_torch", lambda: "torch is not here")
    assert doctor.check_processors().level == "ok"


def test_a_second_copy_of_a_package_is_a_failure_that_names_both(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "loom").mkdir(parents=True)
        (tmp_path / name / "loom" / "__init__.py").touch()
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert doctor.check_installs(["loom"], [one, one + "/../one"]).level == "ok"
    finding = doctor.check_installs(["loom"], [one, two])
    assert finding.level == "fail"
    assert str(tmp_path / "one" / "loom") in finding.detail
    assert str(tmp_path / "two" / "loom") in finding.detail


def test_variables_that_change_what_is_loaded_are_named():
    assert doctor.check_variables({"PATH": "/bin", "PYTHONPATH": ""}).level == "ok"
    finding = doctor.check_variables({"LD_LIBRARY_PATH": "/x", "PYTHONPATH": "/y"})
    assert finding.level == "warn"
    assert finding.fix == "unset PYTHONPATH LD_LIBRARY_PATH"


def test_a_path_file_without_a_package_is_named(tmp_path):
    (tmp_path / "mine-1.0.dist-info").mkdir()
    (tmp_path / "mine-1.0.dist-info" / "RECORD").write_text("mine.pth,sha256=x,9\n")
    (tmp_path / "mine.pth").write_text("/somewhere\n")
    (tmp_path / "_virtualenv.pth").write_text("import _virtualenv\n")
    assert doctor.check_pth_files([tmp_path]).level == "ok"
    (tmp_path / "kilonerf_local.pth").write_text("/mnt/d/kilonerf\n")
    finding = doctor.check_pth_files([tmp_path])
    assert finding.level == "warn"
    assert finding.fix == f"rm {tmp_path / 'kilonerf_local.pth'}"


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    assert doctor.check_disk(tmp_path / "not" / "yet").level in {"ok", "warn"}
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    finding = doctor.check_disk(tmp_path)
    assert finding.level == "fail"
    assert str(tmp_path) in finding.detail


def test_small_shared_memory_and_few_open_files_are_warnings(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=64 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor.check_shared_memory(tmp_path).level == "warn"
    assert doctor.check_shared_memory(Path("/nowhere")).level == "ok"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert doctor.check_open_files().fix == "run `ulimit -n 4096`"


def test_a_checkout_that_git_refuses_is_named_with_its_remedy(tmp_path):
    package = tmp_path / "a b" / "src" / "loom"
    package.mkdir(parents=True)
    assert doctor.check_commit(package).level == "ok"
    (tmp_path / "a b" / ".git").mkdir()  # as good as one that belongs to another user
    finding = doctor.check_commit(package)
    assert finding.level == "warn"
    assert f"safe.directory '{tmp_path / 'a b'}'" in finding.fix
    here = doctor.check_commit(Path(doctor.__file__).parent)
    assert here.level == "ok"
    assert " of " in here.detail or "not a checkout" in here.detail


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler to fall back to")
@pytest.mark.parametrize(("named", "level"), [("", "ok"), ("g++", "ok"), ("ccache g++", "warn")])
def test_a_compiler_that_was_named_and_not_taken_is_said(monkeypatch, named, level):
    monkeypatch.setenv("CXX", named)
    finding = doctor.check_compiler()
    assert finding.level == level
    assert ("CXX=ccache g++ does not run" in finding.detail) == (level == "warn")
