"""The pictures of a run's boundaries: a strip of frames, curves inside, and the frames that fired.

- `boundary_grid.png`: twenty frames in a row, red where a segment begins (READ), blue where it goes
  on (COPY), with the score of each as a bar below.
- `boundary_internal.png`: over a whole episode P(READ), length and number of segments, surprise and
  pixel difference, beside the true events.
- `boundary_fired.png`: the frames at which the model fired, or that there are none.

A VTA fires where its posterior's P(READ) is above 0.5, or at as many frames as there are true
events (`topk`) if it is silent by that; a model without boundaries at its largest surprises.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loom.arrays import read_npz
from loom.errors import UserError
from loom.files import read_json, write_atomic, write_json
from loom.report import Report
from loom.report_run import run_report
from PIL import Image

from pinpad.boundary import canvas
from pinpad.boundary.canvas import Panel
from pinpad.boundary.compat import frame_delta
from pinpad.boundary.detectors import read_scores
from pinpad.boundary.matching import top
from pinpad.boundary.report import COLUMNS, stored_row
from pinpad.boundary_eval import OUTPUT, SCORES
from pinpad.data.episodes import Episode, episode_files, read_episode

Array = np.ndarray

EVENT = "sequence_append"
"""The true event beside which boundaries are shown."""
GRID = "evaluation/boundary_grid.png"
INTERNAL = "evaluation/boundary_internal.png"
FIRED = "evaluation/boundary_fired.png"
CAPTIONS = {
    GRID: "Frames of one episode: red where a segment begins.",
    INTERNAL: "What the model computes over the same episode, beside the true events.",
    FIRED: "Every frame at which the model fired: green where an event truly happened.",
}
"""In a run's directory."""
STRIP_FRAMES, FIRED_FRAMES, IN_ROW, SIDE = 20, 40, 10, 80


@dataclass(frozen=True)
class Traced:
    """An episode and what a model said of it.

    Attributes:
        episode: Its frames and true events.
        scores: Kind -> (T,): `posterior`, `online` (both P(READ)) and `surprise`, as there are;
            `abs_surprise` is the part of it that the abstract level of a VTA has.
        boundary: (T,) bool, where the model fired.
        rule: How `boundary` follows from the scores, in words.
    """

    episode: Episode
    scores: Mapping[str, Array]
    boundary: Array
    rule: str

    @property
    def event(self) -> Array:
        """Return (T,) bool, the true events; none where the file knows none."""
        return self.episode.events.get(EVENT, np.zeros(len(self.episode), bool))


def draw_run(run: Path, number: int | None = None) -> list[Path]:
    """Draw the three figures of a run's evaluated episode; return their paths.

    Args:
        run: Directory of a run that `pinpad boundaries eval` has judged.
        number: Which of the episodes; by default the one with the most true events.

    Raises:
        UserError: The run has not been judged, or there is no such episode.
    """
    if not (run / OUTPUT).is_file():
        raise UserError(f"{run}: has no {OUTPUT}", hint=f"run `pinpad boundaries eval {run}`")
    files = episode_files((run / OUTPUT).parent / read_json(run / OUTPUT)["folder"])
    if number is not None and number >= len(files):
        raise UserError(f"there are {len(files)} episodes, numbered from 0", hint="--episode 0")
    chosen = files if number is None else [files[number]]
    traced = max((trace(run, read_episode(path)) for path in chosen), key=lambda t: t.event.sum())
    begin = busiest(traced.event | traced.boundary, STRIP_FRAMES)
    pictures = {
        GRID: draw_grid(traced, begin),
        INTERNAL: draw_internal(traced),
        FIRED: draw_fired(traced),
    }
    for name, picture in pictures.items():
        write_atomic(run / name, _png(picture))
    shown = {
        "episode": traced.episode.name,
        "rule": traced.rule,
        "grid_begins": begin,
        "boundaries": np.flatnonzero(traced.boundary).tolist(),
        "events": {EVENT: np.flatnonzero(traced.event).tolist()},
    }
    write_json(run / "evaluation" / "boundary_figures.json", shown)
    return [run / name for name in pictures]


def trace(run: Path, episode: Episode) -> Traced:
    """Read what a run's model said of an episode."""
    name = f"{episode.name}-{len(episode)}.npz"
    scores = {
        path.parent.name: read_scores(path, len(episode))[0]
        for path in sorted((run / SCORES).glob(f"*/{name}"))
    }
    stored = run / SCORES / "posterior" / name
    above = read_npz(stored).get("abs_surprise") if "posterior" in scores else None
    if above is not None:
        if above.shape != (len(episode),):
            raise UserError(f"{stored}: abs_surprise has shape {above.shape}", hint="judge again")
        scores["abs_surprise"] = above.astype(np.float64)
    if not scores.keys() & {"posterior", "surprise"}:
        raise UserError(
            f"{run / SCORES}: no scores of episode {episode.name}",
            hint=f"judge again: `pinpad boundaries eval {run}`",
        )
    events = episode.events.get(EVENT, np.zeros(len(episode), bool))
    count = int(events[1:].sum())
    if "posterior" not in scores:
        return Traced(
            episode, scores, top(scores["surprise"], count), f"the {count} largest surprises"
        )
    read = scores["posterior"] > 0.5
    read[0] = False  # the reset is a boundary by definition
    if read.any():
        return Traced(episode, scores, read, "P(READ) > 0.5")
    rule = f"the {count} highest P(READ): none is above 0.5"
    return Traced(episode, scores, top(scores["posterior"], count), rule)


def busiest(happens: Array, frames: int) -> int:
    """Return where the stretch of `frames` steps begins in which most happens; the first of them.

    Args:
        happens: (T,) bool.
        frames: Length of the stretch.
    """
    counts = np.convolve(happens[1:], np.ones(min(frames, len(happens) - 1)), mode="valid")
    return 1 + int(counts.argmax())


def draw_grid(traced: Traced, begin: int) -> Array:
    """Return twenty frames with their borders, and the score of each as a bar."""
    rows = np.arange(begin, min(begin + STRIP_FRAMES, len(traced.episode)))
    event = traced.event[rows]
    kind = "posterior" if "posterior" in traced.scores else "surprise"
    score = traced.scores[kind]
    high = 1.0 if kind == "posterior" else float(score.max()) or 1.0
    bars = "P(READ)" if kind == "posterior" else f"surprise, full at {high:.3g} nats"
    frames = canvas.enlarged(traced.episode.image[rows], SIDE)
    strip = canvas.strip(
        canvas.with_bars(frames, score[rows] / high),
        [canvas.READ if fired else canvas.COPY for fired in traced.boundary[rows]],
        [f"{t}{'*' if true else ''}" for t, true in zip(rows, event, strict=True)],
        columns=IN_ROW,
    )
    head = f"red: boundary ({traced.rule}); blue: none; *: {EVENT}; bars: {bars}"
    return canvas.stacked(canvas.text_image(head, strip.shape[1], 28), strip)


def draw_internal(traced: Traced) -> Array:
    """Return curves over the episode of what the model holds and what truly happened."""
    scores, event = traced.scores, {EVENT: traced.event}
    shown = []
    probabilities = {kind: scores[kind] for kind in ("posterior", "online") if kind in scores}
    if probabilities:
        shown.append(Panel("P(READ)", probabilities, event, (0.0, 1.0)))
    number = np.cumsum(traced.boundary)
    begins = np.maximum.accumulate(np.where(traced.boundary, np.arange(len(number)), 0))
    shown += [
        Panel("steps since the last boundary", {"length": np.arange(len(number)) - begins}, event),
        Panel("segments so far", {"number": number}),
        Panel("surprise, nats", _levels(scores), event),
        Panel(
            "mean pixel difference",
            {"delta": frame_delta(traced.episode.image)},
            {"reward": traced.episode.reward > 0},
        ),
    ]
    return canvas.panels(shown)


def _levels(scores: Mapping[str, Array]) -> dict[str, Array]:
    """Return surprise by level: what the observation and the abstract latent each were moved."""
    if "abs_surprise" not in scores:
        return {"surprise": scores["surprise"]}
    above = scores["abs_surprise"]
    return {"abstract": above, "observation": scores["surprise"] - above}


def draw_fired(traced: Traced) -> Array:
    """Return the frames at which the model fired, green where a true event is."""
    rows = np.flatnonzero(traced.boundary)
    if len(rows) == 0:
        return canvas.text_image(f"no boundaries in episode {traced.episode.name}")
    shown, event = rows[:FIRED_FRAMES], traced.event
    borders = [canvas.EVENT if event[t] else canvas.READ for t in shown]
    frames = canvas.enlarged(traced.episode.image[shown], SIDE)
    strip = canvas.strip(frames, borders, [str(t) for t in shown], columns=IN_ROW)
    head = f"{len(shown)} of {len(rows)} boundaries ({traced.rule}); green: {EVENT}; red: no event"
    return canvas.stacked(canvas.text_image(head, max(strip.shape[1], 640), 28), strip)


def _returns(page: Report, run: Path) -> None:
    if not (run / "evaluation" / "returns.json").is_file():
        return
    from pinpad import returns

    earned = returns.read_returns(run / "evaluation")
    if earned:
        page.heading("Returns")
        page.table(returns.COLUMNS, returns.table(earned), "95 % intervals over rooms")


def _png(picture: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def write_report(run: Path) -> Path:
    """Write a run's `report.html`: returns if somebody acted, boundaries if they were judged.

    Raises:
        UserError: There is no run of this thread in the folder, or a file is damaged.
    """
    judged = read_json(run / OUTPUT)["judgements"] if (run / OUTPUT).is_file() else []
    pictures = draw_run(run) if judged else []

    def judgement(page: Report) -> None:
        _returns(page, run)
        if not judged:
            page.text(f"No boundaries were judged yet: `pinpad boundaries eval {run}` does it.")
        for event in dict.fromkeys(one["event"] for one in judged):
            same = [one for one in judged if one["event"] == event]
            page.heading(f"Boundaries against {event}: {same[0]['events']} events")
            page.table(COLUMNS, [stored_row(one) for one in same])
        captions = [CAPTIONS[path.relative_to(run).as_posix()] for path in pictures]
        images = [path.read_bytes() for path in pictures]
        page.pictures(list(zip(captions, images, strict=True)), columns=1)

    return run_report(run, judgement, thread="pinpad").write(run / "report.html")
