"""A snapshot holds a run, the code that it came from, and a word on what is missing."""

import json
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from loom.__main__ import app
from loom.errors import UserError
from loom.files import write_json
from loom.snapshot import snapshot
from typer.testing import CliRunner

from packages.core.tests.small_run import write_run

runner = CliRunner()


def checkout(folder: Path) -> tuple[Path, str]:
    """Make a repository with one commit, and a change that is not committed."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "code.py").write_text("x = 1\n")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    (folder / "src" / "code.py").write_text("x = 2\n")
    return folder / "src", git("rev-parse", "HEAD")


def packed(tmp_path: Path, source: Path | None = None) -> tuple[Path, Path]:
    from loom.provenance import git_state

    source = source if source is not None else checkout(tmp_path / "code")[0]
    run = write_run(tmp_path / "runs" / "a", state="finished")
    facts = {
        "thread": "demo",
        "git": git_state(str(source)),
        "packages": {"demo": {"version": "1", "path": str(source)}},
    }
    write_json(run / "run.json", facts)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "scores.json").write_text("{}")
    (run / "renders").mkdir()
    (run / "renders" / "large.png").write_bytes(b"0" * 100)
    return run, source


def test_a_snapshot_holds_the_run_its_code_and_the_changes_that_were_not_committed(tmp_path):
    run, _ = packed(tmp_path)
    result = runner.invoke(app, ["snapshot", str(run), "paper-1"])
    assert result.exit_code == 0, result.stderr
    target = tmp_path / "runs" / "snapshots" / "paper-1.zip"
    assert result.stdout.strip() == str(target)
    with zipfile.ZipFile(target) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read("manifest.json"))
        digests = {name: sha256(archive.read(name)).hexdigest() for name in names}
        patch = archive.read("uncommitted.patch").decode()
        tree = archive.read("code.tar")
    assert names >= {"config.yaml", "run.json", "evaluation/scores.json", "code.tar"}
    assert "renders/large.png" not in names
    assert "+x = 2" in patch
    assert b"x = 1" in tree
    assert manifest["sha256"] == {n: d for n, d in digests.items() if n != "manifest.json"}
    assert runner.invoke(app, ["snapshot", str(run), "paper-1"]).exit_code == 2


def test_a_snapshot_says_when_the_code_is_no_longer_what_the_run_began_with(tmp_path):
    run, source = packed(tmp_path)
    (source / "code.py").write_text("x = 3\n")
    target, notices = snapshot(run, "late")
    assert "no longer in the checkout" in notices[0]
    with zipfile.ZipFile(target) as archive:
        assert "uncommitted.patch" not in archive.namelist()
        assert json.loads(archive.read("manifest.json"))["notices"] == notices


def test_a_snapshot_holds_the_code_that_git_does_not_track(tmp_path):
    source, _ = checkout(tmp_path / "code")
    (source / "new.py").write_text("y = 1\n")
    (source / "data.bin").write_bytes(b"0" * (1 << 20) + b"1")
    (source / "link.py").symlink_to("/etc/hostname")
    run, _ = packed(tmp_path, source)
    target, notices = snapshot(run, "new")
    with zipfile.ZipFile(target) as archive:
        members = [name for name in archive.namelist() if name.startswith("untracked")]
        assert members == ["untracked/src/new.py"]
        assert archive.read(members[0]) == b"y = 1\n"
    assert notices == [
        "not tracked by git, packed as they are now: untracked/src/new.py",
        "not tracked by git, too large to be packed: src/data.bin",
    ]


@pytest.mark.parametrize("tag", ["", "../x", "a/b", ".hidden", "a b", "x" * 101])
def test_a_tag_that_is_no_name_is_refused(tmp_path, tag):
    run = write_run(tmp_path / "a")
    with pytest.raises(UserError, match="cannot name a snapshot"):
        snapshot(run, tag)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_snapshot_takes_the_newest_intact_checkpoint_along(tmp_path):
    from loom.checkpoint import Checkpoints

    run, _ = packed(tmp_path)
    with pytest.raises(UserError, match="no intact checkpoint"):
        snapshot(run, "none", checkpoint=True)
    checkpoints = Checkpoints(run / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, {"model": {}})
    (run / "checkpoints" / "step_000002" / "state.pt").write_bytes(b"torn")
    with zipfile.ZipFile(snapshot(run, "one", checkpoint=True)[0]) as archive:
        members = [name for name in archive.namelist() if name.startswith("checkpoints/")]
    assert "checkpoints/step_000001/state.pt" in members
    assert not [name for name in members if "step_000002" in name]
