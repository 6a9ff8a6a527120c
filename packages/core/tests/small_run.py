"""Small runs: settings, what a run's files say, and the files of one that nobody made."""

import json
import os
import time
from pathlib import Path
from typing import ClassVar

from loom.config import Config
from loom.files import write_json
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


def write_run(path: Path, *, state: str = "running", config: str = "seed: 1\n", **status) -> Path:
    path.mkdir(parents=True)
    facts = {"thread": "demo", "began": f"2026-01-0{len(path.name)}", "config_origins": {}}
    write_json(path / "run.json", facts)
    beat = {"heartbeat": time.time(), "pid": os.getpid(), "host": "elsewhere", "interval_s": 5}
    write_json(path / "status.json", {"state": state, **beat, **status})
    (path / "config.yaml").write_text(config)
    return path
