"""Another checkout on the path is refused before anything is computed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import coopcyl
import pytest
from coopcyl.cli import app
from coopcyl.guard import PLACE, require_this_checkout
from loom.errors import UserError
from typer.testing import CliRunner

PACKAGE = Path(coopcyl.__file__).parent


def test_the_own_checkout_and_any_other_folder_are_fine(tmp_path):
    (tmp_path / PLACE.parent).mkdir(parents=True)
    (tmp_path / PLACE).symlink_to(PACKAGE)
    require_this_checkout(tmp_path, PACKAGE)
    require_this_checkout(Path("/"), PACKAGE)


def test_another_checkout_is_refused_from_any_folder_inside(tmp_path):
    (tmp_path / PLACE).mkdir(parents=True)
    inside = tmp_path / "runs" / "deep"
    inside.mkdir(parents=True)
    with pytest.raises(UserError) as error:
        require_this_checkout(inside, PACKAGE)
    assert str(tmp_path) in error.value.message
    assert str(PACKAGE) in error.value.message


@pytest.mark.parametrize("command", ["demo", "train", "eval", "predict", "render", "parity"])
def test_no_command_of_a_network_starts_in_another_checkout(tmp_path, monkeypatch, command):
    (tmp_path / PLACE).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = [] if command in {"demo", "train"} else ["run"]
    result = CliRunner().invoke(app, [command, *run])
    assert result.exit_code == 2
    assert f"this is the checkout {tmp_path}, but coopcyl is imported from" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["packages"]


def test_a_shadow_package_on_the_path_does_not_train(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "shadow" / "coopcyl")
    (tmp_path / "checkout" / PLACE).mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", "from coopcyl.cli import main; main()", "train"],
        cwd=tmp_path / "checkout",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "shadow")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert str(tmp_path / "shadow" / "coopcyl") in done.stderr
    assert str(tmp_path / "checkout") in done.stderr
    assert not (tmp_path / "checkout" / "runs").exists()
