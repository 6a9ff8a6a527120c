"""A subshell in which the seed and the determinism variables cannot be changed by accident."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from loom.errors import UserError
from loom.files import read_json

SETTINGS = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONUNBUFFERED": "1",
}


def variables(run: Path | None, seed: int | None) -> dict[str, str]:
    """Return what the subshell locks.

    Args:
        run: A run directory whose recorded seed is taken.
        seed: The seed without a run; one of the two is needed.

    Raises:
        UserError: The folder is no run, or its record has no seed.
    """
    if run is not None:
        recorded = read_json(run / "run.json").get("seed")
        if not isinstance(recorded, int):
            raise UserError(f"{run / 'run.json'} records no seed", hint="give --seed")
        seed = recorded
    return {"PYTHONHASHSEED": str(seed or 0), **SETTINGS}


def locked_shell(locked: dict[str, str], command: str | None) -> int:
    """Run bash with the variables exported and read-only; return its exit code.

    Args:
        locked: Names and values.
        command: Run this and leave; None opens an interactive shell.
    """
    bash = shutil.which("bash")
    if bash is None:
        raise UserError("bash was not found", hint="install bash; other shells cannot lock")
    lines = [f"export {name}='{value}'\nreadonly {name}" for name, value in locked.items()]
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.sh"
        profile = "" if command else '[ -f "$HOME/.bashrc" ] && . "$HOME/.bashrc"\n'
        start.write_text(profile + "\n".join(lines) + "\n", encoding="utf-8")
        if command is None:
            arguments = [bash, "--rcfile", str(start), "-i"]
        else:
            arguments = [bash, "-c", f'. "$1"\n{command}', "bash", str(start)]
        return subprocess.run(arguments, env=os.environ | locked, check=False).returncode
