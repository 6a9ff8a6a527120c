"""`pinpad boundaries eval`: from a run or from folders to a table, a JSON file and a page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loom.drawing import print_table
from loom.errors import UserError

from pinpad.boundary import report
from pinpad.boundary.detectors import ANCHORS, SELECTIONS, Detector, Scores, parse_anchor
from pinpad.boundary.evaluate import DEFAULT_EVENTS, ENOUGH_EPISODES, judge
from pinpad.boundary.recordings import read_recordings
from pinpad.config import WorldConfig
from pinpad.data.collect import record_episodes, write_new
from pinpad.data.players import parse_mix
from pinpad.embedded import embedded_episodes
from pinpad.envs.layouts import layout_name


def evaluate_folder(
    folder: Path | None,
    *,
    scores: Sequence[str] = (),
    source: str | None = None,
    anchors: Sequence[str] | None = None,
    events: Sequence[str] | None = None,
    permutations: int = 9_999,
    seed: int = 0,
    output: Path = Path("boundary_eval.json"),
    say: Callable[[str], None] = print,
) -> Path:
    """Judge every detector against every kind of event; return the path of the page.

    Args:
        folder: The episodes; the embedded ones without it.
        scores: `NAME=FOLDER` each.
        source: How boundaries follow from scores; by default from what they are.
        anchors: Detectors that learn nothing; all of them by default.
        events: Kinds of true events.
        permutations: Shifts for the p value.
        seed: Of everything drawn.
        output: JSON file.
        say: Prints a line.
    """
    detectors: list[Detector] = [_scores(text, source) for text in scores]
    detectors += [parse_anchor(text) for text in (anchors or ANCHORS)]
    names = [detector.name for detector in detectors]
    if len(set(names)) < len(names):
        raise UserError(f"two detectors have one name: {', '.join(names)}", hint="rename one")
    folder = folder or embedded_episodes(say)
    recordings = read_recordings(folder)
    if len(recordings) < ENOUGH_EPISODES:
        say(f"[warning] {len(recordings)} episodes; intervals want {ENOUGH_EPISODES} or more")
    kinds = list(dict.fromkeys(events or DEFAULT_EVENTS))
    judged = [
        judge(recordings, detector, kind, seed=seed, permutations=permutations)
        for kind in kinds
        for detector in detectors
    ]
    for kind in kinds:
        count = next(each.events for each in judged if each.event == kind)
        say(f"\n{kind}: {count} events in {len(recordings)} episodes")
        print_table(report.COLUMNS, report.rows(judged, kind))
    facts = {
        "folder": str(folder),
        "episodes": len(recordings),
        "permutations": permutations,
        "seed": seed,
    }
    return report.write(judged, output, facts)


def evaluate(
    path: Path | None,
    on: Path | None = None,
    *,
    scores: Sequence[str] = (),
    output: Path | None = None,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> Path:
    """Judge the model of a run, or stored scores; return the path of the page.

    Args:
        path: A run directory, whose model scores episodes that it has not seen; or a folder of
            episodes; or None.
        on: The episodes that a run's model scores; without it scripted ones are recorded into the
            run's directory, once.
        scores: `NAME=FOLDER` each, beside those of the run.
        output: JSON file; by default in the run's directory, or `boundary_eval.json`.
        say: Prints a line.
        settings: As for `evaluate_folder`.

    Raises:
        UserError: `on` is given without a run.
    """
    if path is None or not (path / "config.yaml").is_file():
        if on is not None:
            raise UserError(f"{path}: no run, so its model cannot score {on}", hint="name a RUN")
        output = output or Path("boundary_eval.json")
        return evaluate_folder(path, scores=scores, output=output, say=say, **settings)
    from pinpad.restore import restore_world
    from pinpad.score import score_folder

    place = path / "evaluation"
    episodes = on or place / "episodes"
    if on is None and not any(episodes.glob("*.npz")):
        _, config = restore_world(path)
        record_heldout(config, episodes)
        say(f"[data] {config.heldout_episodes} held-out episodes recorded to {episodes}")
    own = [f"{folder.name}={folder}" for folder in score_folder(path, episodes, place / "scores")]
    output = output or place / "boundary_eval.json"
    return evaluate_folder(episodes, scores=[*own, *scores], output=output, say=say, **settings)


def record_heldout(config: WorldConfig, folder: Path) -> None:
    """Record the scripted episodes that a run of this configuration is judged on."""
    recorded = record_episodes(
        layout_name(config.task),
        parse_mix(config.heldout_players),
        config.heldout_episodes,
        length=config.time_limit,
        size=config.size,
        seed=config.heldout_seed,
    )
    write_new(folder, recorded)


def _scores(text: str, source: str | None) -> Scores:
    name, equals, folder = text.partition("=")
    if not equals or not name:
        raise UserError(f"{text!r} names no scores", hint="write --scores NAME=FOLDER")
    selection = next((each for each in SELECTIONS if each == source), None)
    if source is not None and selection is None:
        raise UserError(f"{source!r} is no selection", hint=f"there are {', '.join(SELECTIONS)}")
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no folder of scores", hint="write --scores NAME=FOLDER")
    return Scores(name, Path(folder), selection)
