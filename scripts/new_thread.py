"""Make a package that stands in the house: a thread with a config, a training, a command, tests.

    uv run scripts/new_thread.py wordcount "Count words in a stream"

What it writes works: `uv run wordcount train` fits a line, holds it against the mean as baseline
and leaves a run directory. Replace the line by your job, one room after the other; the tests in
`tests/test_house.py` and `tests/test_documents.py` find the new package by themselves.
"""

import argparse
import importlib.util
import keyword
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PYPROJECT = """\
[project]
name = "{command}"
version = "0.1.0"
description = "{job}"
readme = "README.md"
requires-python = ">=3.11"
license = "Apache-2.0"
dependencies = ["loom-core", "torch>=2.10", "typer>=0.15"]

[project.scripts]
{command} = "{package}.cli:main"

[tool.uv.sources]
loom-core = {{ workspace = true }}

[build-system]
requires = ["uv_build>=0.13,<0.14"]
build-backend = "uv_build"

[tool.uv.build-backend]
module-name = "{package}"
"""

README = """\
# {command}

{job}.

| command | does |
|---|---|
| `uv run {command} train` | fits a line and holds it against the mean |
| `uv run {command} config show`, `uv run {command} schedule` | settings and where they come from |
| `uv run {command} doctor` | checks that this machine can run Loom |

## Dependencies

| library | why |
|---|---|
| `loom-core` | runs, records, the loop, gates, reports |
| `torch` | tensors and autograd |
| `typer` | the command line |
"""

INIT = '"""{job}."""\n'

CLI = '''\
"""The `{command}` command: parse, then one call."""

from functools import partial

from loom.cli import (
    Archive,
    ConfigOption,
    Overrides,
    Resume,
    RunDir,
    add_config_commands,
    application,
    run_app,
)

import {package}

app = application("{command}", {package}.__doc__)
main = partial(run_app, app)
add_config_commands(app, "{package}.config:TrainConfig")


@app.command()
def train(
    config: ConfigOption = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    archive: Archive = False,
) -> None:
    """Fit a line to points, and hold it against their mean."""
    from loom.run import Run

    from {package}.config import TrainConfig
    from {package}.train import train as fit_line

    run = Run.open(
        "{command}",
        TrainConfig,
        config,
        overrides or (),
        directory=run_dir,
        resume=resume,
        archive=archive,
    )
    with run:
        fit_line(run)
'''

CONFIG = '''\
"""Settings of a training."""

from collections.abc import Mapping

from loom.config import Config
from loom.schedule import WarmupCosine
from pydantic import Field, PositiveInt


class TrainConfig(Config):
    """What a run depends on besides its code."""

    name: str = "line"
    seed: int = 0
    max_steps: PositiveInt = 200
    batch: PositiveInt = 64
    lr: float = Field(default=0.05, gt=0)
    noise: float = Field(default=0.1, ge=0)

    def schedules(self) -> Mapping[str, WarmupCosine]:
        """Return what changes over training."""
        return {{"lr": WarmupCosine(self.lr, warmup=10, total=self.max_steps, floor=0.0)}}
'''

TRAIN = '''\
"""The training: a line through noisy points, y = 2 x + 1."""

import torch
from loom.gates import Baseline, Gate
from loom.loop import Every, FitResult, Losses, Term, fit
from loom.run import Run
from loom.sampling import Shard, draw_rng
from loom.state import TrainState
from torch import Tensor, nn

from {package}.config import TrainConfig

Points = tuple[Tensor, Tensor]


def points(config: TrainConfig, step: int, shard: Shard) -> Points:
    """Return this process's x and y [b, 1] of a step: a pure function of seed and step."""
    draw = draw_rng(config.seed, step, "points")
    x = draw.uniform(-1, 1, (config.batch, 1))
    y = 2 * x + 1 + config.noise * draw.standard_normal(x.shape)
    mine = slice(shard.rank, None, shard.world)
    return torch.from_numpy(x[mine]).float(), torch.from_numpy(y[mine]).float()


def train(run: Run[TrainConfig]) -> FitResult:
    """Fit the line; a run that is no better than the mean ends with a missed gate."""
    config = run.config
    model = nn.Linear(1, 1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)  # a start that is worse than the mean
    lr = config.schedules()["lr"]
    x, y = points(config, -1, Shard())  # of no training step

    def loss(model: nn.Module, batch: Points, step: int) -> Losses:
        return Losses({{"squared": Term((model(batch[0]) - batch[1]).square().mean(), 1.0)}})

    def evaluate(model: nn.Module) -> dict[str, float | None]:
        with torch.no_grad():
            error = (model(x) - y).square().mean()
        mean = (y - y.mean()).square().mean()
        return {{"metric/error": error.item(), "baseline/mean/error": mean.item()}}

    return fit(
        run,
        TrainState(model, torch.optim.Adam(model.parameters())),
        steps=config.max_steps,
        batch=lambda step, shard: points(config, step, shard),
        loss=loss,
        lr=lr.at,
        evaluate=Every(50, evaluate),
        gates=[Gate("metric/error", "<", Baseline("mean"), otherwise="it has learned nothing")],
    )
'''

TEST = '''\
"""The training finds the line that the points were drawn from."""

from pathlib import Path

import pytest
{imports}


def train(folder: Path, *settings: str) -> int:
    return CliRunner().invoke(app, ["train", "--run-dir", str(folder), *settings]).exit_code


def test_the_line_is_found(tmp_path):
    assert train(tmp_path / "run") == 0
    assert read_status(tmp_path / "run")["state"] == "finished"
    loaded = Checkpoints(tmp_path / "run" / "checkpoints").load_newest()
    assert loaded is not None
    assert loaded.state["model"]["weight"].item() == pytest.approx(2, abs=0.1)
    assert loaded.state["model"]["bias"].item() == pytest.approx(1, abs=0.1)


def test_a_training_that_learns_nothing_misses_its_gate(tmp_path):
    assert train(tmp_path / "run", "lr=1e-9") == 3
'''

IMPORTED_BY_TEST = (
    "from {package}.cli import app",
    "from loom.checkpoint import Checkpoints",
    "from loom.progress import read_status",
    "from typer.testing import CliRunner",
)
"""Sorted when written, for their order depends on the name."""

FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "src/{package}/__init__.py": INIT,
    "src/{package}/py.typed": "",
    "src/{package}/cli.py": CLI,
    "src/{package}/config.py": CONFIG,
    "src/{package}/train.py": TRAIN,
    "tests/test_train.py": TEST,
}


def write_thread(name: str, job: str, root: Path = ROOT) -> Path:
    """Write a package and return its folder; `-` in the name becomes `_` in the import."""
    package = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or keyword.iskeyword(package):
        sys.exit(f"{name!r} cannot name a command: lower case letters, digits and '-'")
    if '"' in job or "\\" in job or "\n" in job:
        sys.exit("the job is one line without quotes and backslashes")
    folder = root / "packages" / package
    if folder.exists():
        sys.exit(f"{folder} is there already")
    if package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        sys.exit(f"{name!r} would hide the module {package} of Python or of a dependency")
    values = {"command": name, "package": package, "job": job.rstrip(".")}
    values["imports"] = "\n".join(sorted(line.format(**values) for line in IMPORTED_BY_TEST))
    for path, text in FILES.items():
        target = folder / path.format(package=package)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.format(**values), encoding="utf-8")
    return folder


def main() -> None:
    """Read the name and the job, and say what to do next."""
    parser = argparse.ArgumentParser(description="Make a package that stands in the house.")
    parser.add_argument("name", help="what the user types")
    parser.add_argument("job", help="its job in one sentence")
    given = parser.parse_args()
    folder = write_thread(given.name, given.job)
    print(f"{folder.relative_to(ROOT)}: next\n  uv run scripts/pins.py --write")
    print(f"  uv run {given.name} train\n  uv run pytest {folder.relative_to(ROOT)} tests")


if __name__ == "__main__":
    main()
