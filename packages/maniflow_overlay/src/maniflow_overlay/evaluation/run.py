"""A matrix from the command line to its page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import typer
from loom.config import resolve
from loom.errors import UserError
from loom.files import write_atomic
from loom.run import Run
from loom.run_directory import require_thread, settings_of

from maniflow_overlay.arms import Arm
from maniflow_overlay.evaluation.actors import Expert, PolicyActor, Random, Replay
from maniflow_overlay.evaluation.config import MatrixConfig
from maniflow_overlay.evaluation.film import Film
from maniflow_overlay.evaluation.matrix import (
    CELLS,
    conditions_for,
    read_cells,
    run_cell,
)
from maniflow_overlay.evaluation.page import (
    FOLDER,
    ROLLOUTS,
    STRIPS,
    print_matrix,
    title,
    write_page,
)
from maniflow_overlay.evaluation.rollout import Actor, Condition
from maniflow_overlay.overlay.pictures import write_png_bgr
from maniflow_overlay.sim.choice import chosen_scene, make_scene
from maniflow_overlay.sim.scene import Scene

_BASELINES: dict[str, Callable[[], Actor]] = {
    "expert": Expert,
    "replay": Replay,
    "random": Random,
}


def arm_name(arm: Arm) -> str:
    """Return how tables call an arm: `initial+current A`, `current B`, `none`."""
    if arm.mode == "none":
        return "none"
    return f"{arm.mode.replace('_', '+')} {'A' if arm.fuse == 'overlay' else 'B'}"


def matrix_command(
    source: Path | None,
    overrides: Sequence[str] | None,
    runs: Sequence[Path],
    episodes: int | None,
    scene: str | None,
    *,
    directory: Path | None,
    resume: bool,
    archive: bool,
) -> None:
    """Play a matrix, print its table and write its page."""
    flags = {"runs": [str(path) for path in runs] or None, "episodes": episodes, "scene": scene}
    source = settings_of(source, directory, resume=resume, thread="maniflow_overlay")
    resolved = resolve(MatrixConfig, source, overrides, flags=flags)
    for run_dir in resolved.config.runs:  # before the matrix takes its directory
        if not (run_dir / "config.yaml").is_file():
            raise UserError(
                f"{run_dir} is no training: it has no config.yaml",
                hint="name the directory of a run of `maniflow-overlay train`",
            )
        require_thread(run_dir, "maniflow_overlay")
    with Run.open(
        "maniflow_overlay",
        MatrixConfig,
        resolved,
        directory=directory,
        resume=resume,
        archive=archive,
    ) as run:
        play_matrix(run.config, run)
    print_matrix(run.dir)
    typer.echo(f"report: {write_page(run.dir)}")


def play_matrix(config: MatrixConfig, run: Run[MatrixConfig]) -> None:
    """Play every cell that is not there yet.

    Raises:
        UserError: A run has no policy, or another one than the matrix has played; or there is
            nothing to play.
    """
    if not config.runs and not config.baselines:
        raise UserError("nobody acts: no runs and no baselines", hint="name a training run")
    folder = run.path(FOLDER, CELLS).parent
    (folder / ROLLOUTS).mkdir(exist_ok=True)
    done = set()
    if (folder / CELLS).is_file():
        done = {cell.key for cell in read_cells(folder / CELLS)}
    name = chosen_scene(config.scene, run.info)
    run.use("scene", hashlib.sha256(name.encode()).hexdigest())
    run.status(scene=name)
    scenes: list[Scene] = [make_scene(name) for _ in range(min(config.at_a_time, config.episodes))]
    try:
        plan = [
            (actor, label, condition)
            for actor, label in _actors(config, run)
            for condition in conditions_for(actor, config.tasks, config.occluded, config.qualities)
        ]
        progress = run.progress("cells", len(plan))
        for count, (actor, label, condition) in enumerate(plan, 1):
            if (actor.name, label, condition) not in done:
                _play_cell(config, scenes, folder, actor, label, condition)
            progress.update(count, f"{actor.name}, {title(condition)}")
    finally:
        for each in scenes:
            each.close()


def _actors(config: MatrixConfig, run: Run[MatrixConfig]) -> Iterator[tuple[Actor, str]]:
    for baseline in config.baselines:
        yield _BASELINES[baseline](), ""
    if config.runs:
        from maniflow_overlay.policy.runtime import load_policy  # which imports torch
    for directory in config.runs:
        policy = load_policy(directory, checkpoint=config.checkpoint)
        try:
            run.use(f"policy {directory.name}", policy.digest)
        except UserError as error:
            raise UserError(
                f"{directory} is not the policy any more whose episodes {run.dir} holds: its "
                "weights have changed, or how it is asked",
                hint="put that policy back, give this one a folder of another name, which is a row "
                "of its own, or begin another matrix",
            ) from error
        yield PolicyActor(arm_name(Arm(policy.mode, policy.fuse)), policy), directory.name


def _play_cell(
    config: MatrixConfig,
    scenes: Sequence[Scene],
    folder: Path,
    actor: Actor,
    label: str,
    condition: Condition,
) -> None:
    seeds = range(config.seed, config.seed + config.episodes)
    film = Film(set(seeds[: config.shown]))
    run_cell(actor, label, condition, scenes, seeds, folder, film.watch)
    place = "-".join(
        part.replace(" ", "_")
        for part in (actor.name, label, condition.task, title(condition).replace(", ", "-"))
        if part
    )
    shown = folder / STRIPS
    captions = json.loads(shown.read_text(encoding="utf-8")) if shown.is_file() else {}
    for seed in seeds[: config.shown]:
        picture = f"{place}-{seed}.png"
        write_png_bgr(folder / ROLLOUTS / picture, film.strip(seed)[..., ::-1].copy())
        film.write_webp(folder / ROLLOUTS / f"{place}-{seed}.webp", seed)
        who = f"{actor.name} {label}".strip()
        captions[picture] = f"{who}: {condition.task}, {title(condition)}, seed {seed}"
    write_atomic(shown, json.dumps(captions, indent=1))
