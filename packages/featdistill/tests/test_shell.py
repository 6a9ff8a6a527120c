"""The locked subshell: seed and determinism variables are there and cannot be changed."""

import json

import pytest
from featdistill.shell import locked_shell, variables
from loom.errors import UserError


def test_the_seed_comes_from_the_run(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"seed": 2025}))
    assert variables(tmp_path, None)["PYTHONHASHSEED"] == "2025"


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"run\.json"):
        variables(tmp_path, None)


def test_a_locked_variable_cannot_be_changed(capfd):
    locked = variables(None, 7)
    assert locked_shell(locked, "PYTHONHASHSEED=8; echo not reached") != 0
    assert locked_shell(locked, 'echo "seed $PYTHONHASHSEED"') == 0
    shown = capfd.readouterr()
    assert "readonly variable" in shown.err
    assert shown.out == "seed 7\n"


def test_the_exit_code_is_that_of_the_command():
    assert locked_shell(variables(None, 0), "exit 5") == 5
