"""`pinpad boundaries eval`: from a run or from folders to a table, a JSON file and a page."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loom.drawing import print_table
from loom.errors import UserError

from pinpad.boundary import report
from pinpad.boundary.detectors import ANCHORS, SELECTIONS, Detector, Scores, parse_anchor
from pinpad.boundary.evaluate import DEFAULT_EVENTS, ENOUGH_EPISODES, judge
from pinpad.boundary.recordings import read_recordings
from pinpad.data.collect import write_whole
from pinpad.embedded import embedded_episodes

OUTPUT = "evaluation/boundary_eval.json"
SCORES = "evaluation/scores"
"""In a run's directory: its figures, and the scores that they are of."""

Say = Callable[[str], None]


def evaluate_folder(
    folder: Path,
    detectors: Sequence[Detector],
    *,
    events: Sequence[str] | None = None,
    permutations: int = 9_999,
    seed: int = 0,
    output: Path,
    say: Say = print,
) -> Path:
    """Judge every detector against every kind of event; return the path of the page.

    Args:
        folder: The episodes.
        detectors: Who is judged.
        events: Kinds of true events.
        permutations: Shifts for the p value.
        seed: Of everything drawn.
        output: JSON file; it names the folder as seen from its own.
        say: Prints a line.
    """
    names = [detector.name for detector in detectors]
    if len(set(names)) < len(names):
        raise UserError(f"two detectors have one name: {', '.join(names)}", hint="rename one")
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
        "folder": os.path.relpath(folder, output.parent),
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
    source: str | None = None,
    anchors: Sequence[str] | None = None,
    output: Path | None = None,
    say: Say = print,
    **settings: Any,
) -> Path:
    """Judge the model of a run, or stored scores; return the path of the page.

    Args:
        path: A run directory, whose model scores episodes that it has not seen; or a folder of
            episodes; the embedded ones if None.
        on: The episodes that a run's model scores; by default those of its configuration, or
            scripted ones that are recorded into the run's directory, once.
        scores: `NAME=FOLDER` each, beside those of the run.
        source: How boundaries follow from these; by default from what they are.
        anchors: Detectors that learn nothing; all of them by default.
        output: JSON file; by default in the run's directory, or `boundary_eval.json`.
        say: Prints a line.
        settings: As for `evaluate_folder`.

    Raises:
        UserError: `on` is given without a run.
    """
    detectors = named_detectors(scores, source, anchors)
    if path is None or not (path / "config.yaml").is_file():
        if on is not None:
            raise UserError(f"{path}: no run, so its model cannot score {on}", hint="name a RUN")
        folder = path or embedded_episodes(say)
        output = output or Path(Path(OUTPUT).name)
        return evaluate_folder(folder, detectors, output=output, say=say, **settings)
    from pinpad.score import score_folder

    folder = on or _heldout(path, say)
    score_folder(path, folder, path / SCORES)
    detectors = [*run_detectors(path / SCORES), *detectors]
    return evaluate_folder(folder, detectors, output=output or path / OUTPUT, say=say, **settings)


def run_detectors(scores: Path) -> list[Detector]:
    """Return what a run's scores can be judged as: by their own rule, and at the events' rate.

    Args:
        scores: Folder with one folder for each kind of score.
    """
    found: list[Detector] = []
    for kind in ("posterior", "online"):
        if (scores / kind).is_dir():
            found += [Scores(kind, scores / kind), Scores(f"{kind}:topk", scores / kind, "topk")]
    return [*found, Scores("surprise", scores / "surprise")]


def named_detectors(
    scores: Sequence[str] = (), source: str | None = None, anchors: Sequence[str] | None = None
) -> list[Detector]:
    """Return the detectors that a command line names.

    Args:
        scores: `NAME=FOLDER` each.
        source: How boundaries follow from scores; by default from what they are.
        anchors: Detectors that learn nothing; all of them by default.
    """
    detectors: list[Detector] = [_scores(text, source) for text in scores]
    return detectors + [parse_anchor(text) for text in (anchors or ANCHORS)]


def _heldout(run: Path, say: Say) -> Path:
    """Return held-out episodes of a run; scripted ones are recorded into it once."""
    from pinpad.restore import read_config
    from pinpad.train_world import heldout_episodes

    config = read_config(run)
    folder = config.heldout or run / "evaluation" / "episodes"
    if config.heldout is None and write_whole(folder, heldout_episodes(config)):
        say(f"[data] {config.heldout_episodes} held-out episodes recorded to {folder}")
    return folder


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
