"""Shells complete the commands: what bash itself makes of the script that each one prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import applications

BIN = Path(sys.executable).parent
TYPED = {
    "loom": ("comp", "compare"),
    "featdistill": ("diag", "diagnose"),
    "coopcyl": ("par", "parity"),
    "pinpad": ("bou", "boundaries"),
    "maniflow-overlay": ("serv", "servers"),
    "end2race": ("driv", "drive"),
}


def bash(script: str, home: Path) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(home), "SHELL": "/bin/bash"}
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )


def test_every_command_is_tried():
    assert TYPED.keys() == applications().keys()


@pytest.mark.parametrize("command", TYPED)
def test_bash_completes_a_command(command, tmp_path):
    begun, whole = TYPED[command]
    name = command.replace("-", "_")
    done = bash(
        f'eval "$({command} --show-completion bash)"\n'
        f"COMP_WORDS=({command} {begun}); COMP_CWORD=1\n_{name}_completion {command}\n"
        'echo "${COMPREPLY[*]}"',
        tmp_path,
    )
    assert done.stdout.split() == [whole], done.stderr


def test_completion_is_installed_for_the_shell_that_asks(tmp_path):
    done = bash("loom --install-completion bash", tmp_path)
    assert done.returncode == 0, done.stderr
    rc = (tmp_path / ".bashrc").read_text(encoding="utf-8")
    (line,) = [line for line in rc.splitlines() if "loom" in line]
    script = Path(line.split()[-1].strip("'\""))
    assert "_loom_completion" in script.read_text(encoding="utf-8")
