"""An export killed at any moment and resumed ends with the bytes of an undisturbed one."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_export.py")


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_and_resumed_export_has_the_same_bytes(tmp_path, kills):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(kills), "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    killed = {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()}
    assert len(whole) == 1 + 2 * 40
    assert killed == whole
    assert f"killed {kills} times" in done.stdout
