"""Why do renders not match? Hypotheses that are tested, not guessed.

Each known fault has a correction: flip the renders back, put them into another order, scale them
about the centre, change their background. What a correction explains is the share of the squared
error that it removes,

    explained = 1 - sum |corrected - reference|^2 / sum |render - reference|^2,

so a fault is named only if undoing it makes most of the error go away. Corrections are applied one
after the other, the best first, until none explains enough; what is left is checked for the faults
that cannot be undone from pictures alone: nothing there, cut off at the box, edges composed twice,
other cameras.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from loom.errors import UserError
from loom.evaluation.images import json_number
from torch import Tensor

from featdistill.data.png import read_any_png
from featdistill.data.renders import find_pictures, find_rgba, read_rgba
from featdistill.data.rgba import BACKGROUNDS, composite
from featdistill.evaluate import find_teacher, read_reference, require_same_frames
from featdistill.hypotheses import (
    Trial,
    border_colour,
    compositing_trials,
    corrections,
    cut_off,
    opacity_share,
    overlap,
    same_palette,
    split_trials,
    squared_error,
)

EXPLAINS = 0.6  # a correction that removes this share of the error (4 dB) names a fault
BLANK_CONTRAST = 0.11  # opacity at which a student of the right colours is 1 dB above blank
HEALTHY_MARGIN_DB = 6.0
_WORKING_WIDTH = 96
_ROUNDS = 3
_MATTERS = 0.05  # a second fault must explain this share of the error that there was at first

REMEDIES = {
    "blank": "look at mean opacity in the records: an opacity target pulls it down, the student may"
    " not be in the optimised phase, or its box may miss the object",
    "faint": "raise the opacity target (`loss.opacity.target: teacher`) or train longer",
    "flipped": "check the sign of the camera axes: OpenGL looks along -z with y up, OpenCV along +z"
    " with y down",
    "order": "order frames by number, not by name: r_2 comes before r_10",
    "split": "render the cameras of the split that the references show (`data.camera_json`)",
    "background": "compose both sides on one background (`--background`)",
    "compositing": "premultiply once and add (1 - alpha) of the background once",
    "scale": "check focal length, image size and the scale of the scene against the student's box",
    "box": "widen the student's box (`student.bbox`), or drop the fixed one so that it is derived",
    "cameras": "check that renders and references come from the same camera file",
    "unexplained": "look at the pictures side by side; train longer if the shape is right",
    "healthy": "",
}


@dataclass(frozen=True)
class Finding:
    """A fault that the pictures show, or "healthy"."""

    kind: str
    statement: str
    explained: float | None = None

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.kind]


@dataclass(frozen=True)
class Diagnosis:
    """What was found, the most telling first, and every hypothesis with what it explains."""

    findings: tuple[Finding, ...]
    psnr_db: float
    blank_psnr_db: float
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """The kind of the first finding."""
        return self.findings[0].kind

    def to_json(self) -> dict[str, object]:
        """Return a mapping for a strict JSON file."""
        return {
            "verdict": self.verdict,
            "psnr_db": json_number(self.psnr_db),
            "blank_psnr_db": json_number(self.blank_psnr_db),
            "findings": [
                {
                    "kind": finding.kind,
                    "statement": finding.statement,
                    "remedy": finding.remedy,
                    "explained": finding.explained,
                }
                for finding in self.findings
            ],
            "trials": [
                {
                    "kind": trial.kind,
                    "name": trial.name,
                    "psnr_db": trial.psnr_db,
                    "gain_db": trial.gain_db,
                    "explained": trial.explained,
                }
                for trial in self.trials
            ],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the diagnosis as text, with the table of hypotheses."""
        text = [
            f"{self.psnr_db:.2f} dB (PSNR of the pooled error), blank: {self.blank_psnr_db:.2f} dB"
        ]
        for finding in self.findings:
            text.append(f"{finding.kind}: {finding.statement}")
            if finding.remedy:
                text.append(f"  hint: {finding.remedy}")
        width = max((len(trial.name) for trial in self.trials), default=0)
        if self.trials:
            text.append(f"{'if it were':<{width}} {'dB':>7} {'gain':>7} {'explained':>9}")
        for trial in sorted(self.trials, key=lambda t: -t.explained):
            share = f"{trial.explained:9.0%}" if trial.explained > -9 else "        -"
            text.append(f"{trial.name:<{width}} {trial.psnr_db:7.2f} {trial.gain_db:+7.2f} {share}")
        return [*text, *self.notes]


def diagnose(
    renders: np.ndarray,
    references: np.ndarray,
    *,
    references_rgba: np.ndarray | None = None,
    other_splits: Mapping[str, np.ndarray] | None = None,
) -> Diagnosis:
    """Find out why renders do not match their references.

    Args:
        renders: uint8 [n, h, w, 3], as they would be shown.
        references: uint8 [n, h, w, 3], what they should look like.
        references_rgba: The same premultiplied, floats [n, h, w, 4]; edges are checked with it.
        other_splits: Pictures of other splits by name, uint8 [m, h, w, 3], in their own order.

    Raises:
        UserError: There are no frames, or the sizes differ.
    """
    if renders.shape != references.shape or renders.ndim != 4 or len(renders) == 0:
        raise UserError(
            f"renders are {list(renders.shape)}, references {list(references.shape)}",
            hint="give the same frames of one size, [n, h, w, 3], at least one",
        )
    shown, wanted = _working(renders), _working(references)
    paper = border_colour(wanted)
    psnr = _db(squared_error(shown, wanted))
    blank = _db(squared_error(paper.expand_as(wanted), wanted))
    contrast = _contrast(shown) / max(_contrast(wanted), 1e-9)
    if contrast < BLANK_CONTRAST:
        return Diagnosis((_blank_finding(shown, wanted, contrast),), psnr, blank)
    others = {name: _working(pictures) for name, pictures in (other_splits or {}).items()}
    findings, corrected, trials = _undo(shown, wanted, others, blank)
    if not findings:
        findings, closer = _look_closer(corrected, wanted, renders, references, references_rgba)
        trials = [*trials, *closer]
    if not findings:
        findings = [_remainder(shown, wanted, psnr, blank)]
    notes = () if references_rgba is not None else ("edges were not checked: no alpha at hand",)
    kept = tuple(trial._replace(corrected=None) for trial in trials)  # figures, not pictures
    return Diagnosis(tuple(findings), psnr, blank, kept, notes)


def diagnose_folders(
    render_dir: Path,
    teacher_renders: Path,
    *,
    background: str = "white",
    take_rgba: bool = False,
    other_splits: Mapping[str, Path] | None = None,
) -> Diagnosis:
    """Diagnose a render folder against the teacher's.

    Args:
        render_dir: Folder with PNG files or, where there are none, `rgba_npz`.
        teacher_renders: PNG files (RGB or RGBA) or a folder beside `rgba_npz`.
        background: What transparent files are composed on.
        take_rgba: Take `rgba_npz` of the renders where there is one, even beside PNG files, which
            then may lie on any background.
        other_splits: Folders with pictures of other splits, by name.

    Raises:
        UserError: A frame is on one side only, damaged or of another size.
    """
    composed = find_rgba(render_dir)
    transparent = composed and (take_rgba or not _has_pictures(render_dir))
    ours = composed if transparent else find_pictures(render_dir)
    theirs = find_teacher(teacher_renders)
    require_same_frames(ours, render_dir, theirs, teacher_renders)
    shown = [_shown(path, background) for path in ours.values()]
    references = [read_reference(path, background) for path in theirs.values()]
    for number, ours_shape, reference in zip(
        theirs, (picture.shape for picture in shown), references, strict=True
    ):
        if ours_shape != reference.pixels.shape or ours_shape != shown[0].shape:
            raise UserError(
                f"frame {number:05d} is {ours_shape[1]}x{ours_shape[0]}, its reference"
                f" {reference.pixels.shape[1]}x{reference.pixels.shape[0]}",
                hint="render at the size of the references",
            )
    rgba = [reference.rgba for reference in references if reference.rgba is not None]
    pictures = {
        name: np.stack([_shown(path, background) for path in find_teacher(folder).values()])
        for name, folder in (other_splits or {}).items()
    }
    return diagnose(
        np.stack(shown),
        np.stack([reference.pixels for reference in references]),
        references_rgba=np.stack(rgba) if len(rgba) == len(references) else None,
        other_splits=pictures,
    )


def _has_pictures(folder: Path) -> bool:
    return any(Path(folder).rglob("*.png"))


def _shown(path: Path, background: str) -> np.ndarray:
    if path.suffix == ".npz":
        return composite(read_rgba(path), BACKGROUNDS[background])
    pixels = read_any_png(path)
    return read_reference(path, background).pixels if pixels.shape[2] == 4 else pixels


def _working(pictures: np.ndarray) -> Tensor:
    """Return float [n, 3, h, w] in [0, 1] at a size that makes every test fast."""
    values = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    height, width = values.shape[2:]
    if width <= _WORKING_WIDTH:
        return values
    size = (max(1, round(height * _WORKING_WIDTH / width)), _WORKING_WIDTH)
    return torch.nn.functional.interpolate(values, size=size, mode="area")


def _db(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error)


def _contrast(pictures: Tensor) -> float:
    """Root mean square distance from the background."""
    return math.sqrt(squared_error(pictures, border_colour(pictures).expand_as(pictures)))


def _blank_finding(shown: Tensor, wanted: Tensor, contrast: float) -> Finding:
    colour = ", ".join(f"{value:.2f}" for value in border_colour(shown).flatten().tolist())
    opacity = max(0.0, opacity_share(shown, wanted))
    return Finding(
        "blank",
        f"the renders are almost bare background ({colour}): {contrast:.1%} of the references'"
        f" contrast, {opacity:.1%} of their opacity",
    )


def _undo(
    shown: Tensor, wanted: Tensor, others: Mapping[str, Tensor], blank: float
) -> tuple[list[Finding], Tensor, list[Trial]]:
    """Correct fault after fault while one explains most of the error; returns the first trials."""
    findings: list[Finding] = []
    first: list[Trial] = []
    at_first = squared_error(shown, wanted)
    for attempt in range(_ROUNDS):
        trials = [*corrections(shown, wanted), *split_trials(shown, wanted, others)]
        if attempt == 0:
            first = trials
        # Shrinking or fading anything wrong brings it nearer to blank, which explains nothing.
        telling = [t for t in trials if t.kind == "background" or t.psnr_db > blank + 3.0]
        # Equal to a percent means the same correction; the first one has the plainer name.
        best = max(telling, key=lambda trial: round(trial.explained, 2))
        left = squared_error(shown, wanted)
        if best.explained < EXPLAINS or best.explained * left < _MATTERS * at_first:
            break
        statement = f"{best.statement}; undoing it gains {best.gain_db:.1f} dB"
        findings.append(Finding(best.kind, statement, best.explained))
        if best.corrected is None:
            break
        shown = best.corrected
    return findings, shown, first


def _look_closer(
    shown: Tensor,
    wanted: Tensor,
    renders: np.ndarray,
    references: np.ndarray,
    references_rgba: np.ndarray | None,
) -> tuple[list[Finding], list[Trial]]:
    """Check what cannot be undone from the pictures: the box, then the edges."""
    findings, trials = [], []
    cut = cut_off(shown, wanted)
    trials.append(cut.trial)
    candidates = [cut.trial] if cut.is_a_cut else []
    if references_rgba is not None:
        edges = list(compositing_trials(renders, references, references_rgba))
        trials.extend(edges)
        candidates.extend(edges)
    best = max(candidates, key=lambda trial: trial.explained, default=None)
    if best is not None and best.explained > EXPLAINS:
        findings.append(Finding(best.kind, best.statement, best.explained))
    return findings, trials


def _remainder(shown: Tensor, wanted: Tensor, psnr: float, blank: float) -> Finding:
    """Name what is left when no fault explains the error."""
    above = psnr - blank
    if above >= HEALTHY_MARGIN_DB:
        return Finding("healthy", f"{above:.1f} dB above a blank image, and no known fault shows")
    shared = overlap(shown, wanted)
    if shared < 0.8 and same_palette(shown, wanted):
        return Finding(
            "cameras",
            f"the same colours in other places: silhouettes overlap by {shared:.0%} and no order of"
            " the frames mends it, so the renders seem to come from other cameras",
        )
    return Finding(
        "unexplained",
        f"only {above:.1f} dB above a blank image (silhouettes overlap by {shared:.0%}), but no"
        " known fault explains it",
    )
