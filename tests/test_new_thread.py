"""A thread made by the script works and follows the rules of the house."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from new_thread import write_thread  # noqa: E402


def test_a_new_thread_trains_and_passes_its_own_tests_and_the_linter(tmp_path):
    folder = write_thread("word-count", "Count words in a stream", tmp_path)
    assert folder == tmp_path / "packages" / "word_count"
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m"]
    lint = ["ruff", "check", "--config", str(ROOT / "pyproject.toml")]
    form = ["ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml")]
    tests = ["pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    for words in (lint, form, tests):
        done = subprocess.run(
            [*run, *words, str(folder)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for path in folder.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("name", ["", "Upper", "9lives", "a/b", "../x", "class", "json", "torch"])
def test_a_name_that_cannot_be_one_is_refused(tmp_path, name):
    with pytest.raises(SystemExit):
        write_thread(name, "A job", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", ['Say "no"', "Count\nwords", "C:\\words"])
def test_a_job_that_would_break_the_files_is_refused(tmp_path, job):
    with pytest.raises(SystemExit, match="one line"):
        write_thread("words", job, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_there_is_not_overwritten(tmp_path):
    write_thread("a-b", "A job", tmp_path)
    with pytest.raises(SystemExit, match="already"):
        write_thread("a-b", "A job", tmp_path)
