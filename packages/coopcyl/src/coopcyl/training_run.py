"""A training from the command line to its page: data, cache, training, judgement."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from loom import distributed
from loom.config import resolve
from loom.device import choose_device
from loom.drawing import print_table
from loom.errors import UserError
from loom.files import write_json
from loom.run import Run
from loom.run_directory import settings_of

from coopcyl.data.cache import StitchedCache
from coopcyl.data.tree import Tree
from coopcyl.embedded import open_town
from coopcyl.evaluate import Evaluation
from coopcyl.judging import print_results, results
from coopcyl.pages import RESULTS, write_report
from coopcyl.train import TrainingData, lr_lines, train
from coopcyl.train_config import TrainConfig

GROUPS = Path(__file__).parent / "groups"
_MOST_ROWS = 30
_CACHE_STRIDE = 16  # views between two lines of progress


def run_training(
    source: Path | None,
    overrides: Sequence[str] | None,
    *,
    flags: dict[str, Any] | None = None,
    directory: Path | None = None,
    resume: bool = False,
    archive: bool = False,
) -> Path:
    """Train, judge the result, write the page; return the run directory."""
    source = settings_of(source, directory, resume=resume, thread="coopcyl")
    resolved = resolve(TrainConfig, source, overrides, groups=groups_of(source), flags=flags)
    last: list[Evaluation] = []
    run: Run[TrainConfig] | None = None
    try:
        with (
            Run.open(
                "coopcyl",
                TrainConfig,
                resolved,
                directory=directory,
                resume=resume,
                archive=archive,
            ) as run,
            distributed.group(),
        ):
            _train(run, last)
    finally:  # a missed gate and a signal leave a result and a page, too
        if run is not None and run.is_main and last:
            print_results({"network": last[0]})
            typer.echo(f"report: {write_report(run.dir)}")
    return run.dir


def _train(run: Run[TrainConfig], last: list[Evaluation]) -> None:
    """Prepare the data and train; `last` holds the newest evaluation."""
    if run.config.dataset.depth_format == "none":
        raise UserError(
            "dataset.depth_format is none: without depth there is nothing to learn from",
            hint="`none` is for looking and predicting; see docs/coopcyl.md for the formats",
        )
    data = open_data(run.config, run.info)
    run.use("train data", listing_digest(data.train))
    run.use("validation data", listing_digest(data.val))
    for tree in (data.train, data.val):
        fill_cache(tree, data.views, run)

    def keep(found: Evaluation, step: int) -> None:
        last[:] = [found]
        if run.is_main:
            write_json(run.path(RESULTS), results(found) | {"step": step, "split": data.val.split})

    train(run.config, run, data, keep, choose_device().type)


def groups_of(source: Path | None) -> Path:
    """Return the folder of the groups: that beside a file of settings, or our own."""
    beside = source.parent / "groups" if source is not None else GROUPS
    return beside if beside.is_dir() else GROUPS


def open_data(config: TrainConfig, say: Callable[[str], None]) -> TrainingData:
    """List both splits of the settings; without a root, those of the embedded town.

    Where there are several processes, the first one writes the town and the others wait for it.
    """
    dataset = config.dataset

    def opened() -> TrainingData:
        return TrainingData(
            open_town(dataset, dataset.split, say),
            open_town(dataset, dataset.val.split, say),
            StitchedCache(dataset.cache, config.reader(), memory_mb=dataset.memory_mb),
        )

    data = opened() if distributed.is_main() else None
    distributed.agree(False)
    return data or opened()


def fill_cache(tree: Tree, views: StitchedCache, run: Run) -> None:
    """Stitch what is not in the cache yet, so that no step waits for PNG files."""
    agents = [agent for frame in tree.frames for agent in frame.agents]
    own = [agents[i] for i in distributed.sharded_indices(len(agents))]
    progress = run.progress(f"cache {tree.split}", len(own))
    for done, agent in enumerate(own, 1):
        if not views.path(agent).exists():
            views.read(agent)
        if done % _CACHE_STRIDE == 0 or done == len(own):
            progress.update(done)
    progress.close()
    distributed.agree(False)
    run.info(f"[cache] {views.counts.misses} views stitched so far, in {views.folder}")


def listing_digest(tree: Tree) -> str:
    """Return a hash of which vehicles a split has at which times, with which cameras."""
    state = hashlib.sha256()
    for frame in tree.frames:
        for agent in frame.agents:
            state.update(f"{agent} {','.join(agent.cameras)}\n".encode())
    return state.hexdigest()


def print_schedule(
    source: Path | None,
    overrides: Sequence[str] | None,
    flags: dict[str, Any],
    *,
    as_json: bool = False,
) -> None:
    """Print the steps of a training and its learning rate at each epoch's first step."""
    config = resolve(TrainConfig, source, overrides, groups=groups_of(source), flags=flags).config
    if not as_json:
        typer.echo("\n".join(lr_lines(config)))
    every = max(1, config.train_params.epochs // _MOST_ROWS)
    rows = [
        (epoch, epoch * config.steps_per_epoch, config.lr().at(epoch * config.steps_per_epoch))
        for epoch in range(0, config.train_params.epochs + 1, every)
    ]
    print_table(("epoch", "step", "lr"), rows, as_json=as_json)
