"""`pinpad boundaries eval`: from folders, or a run, to a table, a JSON file and a page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from loom.drawing import print_table
from loom.errors import UserError

from pinpad.boundary import report
from pinpad.boundary.detectors import ANCHORS, SELECTIONS, Detector, Scores, parse_anchor
from pinpad.boundary.evaluate import DEFAULT_EVENTS, ENOUGH_EPISODES, judge
from pinpad.boundary.recordings import read_recordings

OUTPUT = "boundary_eval.json"
SCORES = "boundary_scores"
"""In a run's directory: its figures, and the scores that they are of."""

Say = Callable[[str], None]


def evaluate_folder(
    folder: Path,
    detectors: Sequence[Detector],
    *,
    events: Sequence[str] | None = None,
    permutations: int = 9_999,
    seed: int = 0,
    output: Path = Path(OUTPUT),
    say: Say = print,
) -> Path:
    """Judge every detector against every kind of event; return the path of the page.

    Args:
        folder: The episodes.
        detectors: Who is judged.
        events: Kinds of true events.
        permutations: Shifts for the p value.
        seed: Of everything drawn.
        output: JSON file.
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
        "folder": str(folder),
        "episodes": len(recordings),
        "permutations": permutations,
        "seed": seed,
    }
    return report.write(judged, output, facts)


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


def run_detectors(scores: Path) -> list[Detector]:
    """Return what a run's scores can be judged as, and the anchors.

    Args:
        scores: Folder with one folder for each kind of score.
    """
    found: list[Detector] = []
    for kind in ("posterior", "online"):
        if (scores / kind).is_dir():
            found += [Scores(kind, scores / kind), Scores(f"{kind}:topk", scores / kind, "topk")]
    found.append(Scores("surprise", scores / "surprise"))
    return found + [parse_anchor(text) for text in ANCHORS]


def evaluate_run(
    run: Path,
    episodes: Path | None = None,
    *,
    events: Sequence[str] | None = None,
    permutations: int = 9_999,
    seed: int = 0,
    output: Path | None = None,
    say: Say = print,
) -> Path:
    """Let a run's newest checkpoint score held-out episodes, and judge it beside the anchors.

    Args:
        run: Its directory; scores and figures are put there.
        episodes: The episodes; by default those of its configuration, or new scripted ones.
        events: Kinds of true events.
        permutations: Shifts for the p value.
        seed: Of everything drawn.
        output: JSON file; by default in the run's directory.
        say: Prints a line.
    """
    from pinpad.score import score_folder

    folder = episodes or _heldout(run, say)
    score_folder(run, folder, run / SCORES)
    return evaluate_folder(
        folder,
        run_detectors(run / SCORES),
        events=events,
        permutations=permutations,
        seed=seed,
        output=output or run / OUTPUT,
        say=say,
    )


def is_run(folder: Path) -> bool:
    """Whether a folder is a training run and not one of episodes."""
    return (folder / "config.yaml").is_file()


def _heldout(run: Path, say: Say) -> Path:
    """Return held-out episodes of a run; scripted ones are recorded into it once."""
    from pinpad.data.collect import write_whole
    from pinpad.restore import read_config
    from pinpad.train_world import heldout_episodes

    config = read_config(run)
    folder = config.heldout or run / "heldout"
    if config.heldout is None and write_whole(folder, heldout_episodes(config)):
        say(f"[data] held-out episodes were recorded to {folder}")
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
