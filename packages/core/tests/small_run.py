"""The settings of a small run, and what the files of a run say."""

import json
from pathlib import Path
from typing import ClassVar

from loom.config import Config
from loom.run import Run


class Train(Config):
    max_steps: int = 50_000
    lr: float = 5e-4


class Settings(Config):
    seed: int = 2025
    train: Train = Train()

    free_on_resume: ClassVar = frozenset({"train.max_steps"})


def opened(directory: Path, **options) -> Run[Settings]:
    return Run.open("featdistill", Settings, directory=directory, quiet=True, **options)


def facts(directory: Path) -> dict:
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


def digest(directory: Path) -> dict[str, bytes]:
    files = (p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}
