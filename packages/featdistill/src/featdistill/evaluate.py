"""Scores of rendered frames: against the teacher's, and beside what a blank image would score.

`compare` takes two folders of PNG files as they are. `pipeline` composes the student's RGBA over a
background first and adds what a plain score hides: on LEGO an all-white image has 9.5 dB and an
SSIM of 0.76, so a student that learned nothing looks like one that learns slowly. Hence

- `foreground_psnr_db`: only the pixels where the teacher shows something,
- `alpha_iou`: overlap of the silhouettes, alpha > 1/2 on both sides,
- `blank`: the scores of the bare background on the same frames.

Whatever cannot be measured (LPIPS without weights, silhouettes of opaque files) is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loom.errors import UserError
from loom.evaluation.images import Pair, PictureDistance, Scores, evaluate_pairs, json_number
from loom.files import read_json, write_json

from featdistill.data.png import make_folder, read_any_png
from featdistill.data.renders import STATS_FILE, find_pictures, find_rgba, read_rgba
from featdistill.data.rgba import BACKGROUNDS, composite
from featdistill.summary import append_summary

VISIBLE_ALPHA = 0.5 / 255  # what rounds to at least 1 in 8 bits
SOLID_ALPHA = 0.5


class FramePair(NamedTuple):
    """One rendered frame and what it should look like."""

    name: str
    rgba: np.ndarray  # premultiplied floats [h, w, 4]
    reference: np.ndarray  # uint8 [h, w, 3], on the background
    reference_alpha: np.ndarray | None = None  # [h, w]


@dataclass(frozen=True)
class Evaluation:
    """The scores of a set of frames on one background."""

    background: str
    scores: Scores
    blank: Scores
    alpha_iou: tuple[float | None, ...]
    method: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    render_stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float | None]:
        """The mean of each metric over the frames, by the names that gates use."""
        overlaps = [value for value in self.alpha_iou if value is not None]
        return {
            **self.scores.means,
            "alpha_iou": math.fsum(overlaps) / len(overlaps) if overlaps else None,
            "blank_psnr_db": self.blank.means["psnr_db"],
            "blank_ssim": self.blank.means["ssim"],
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything as a mapping for a strict JSON file."""
        scores = self.scores.to_json()
        frames: Any = scores.pop("frames")
        return {
            "method": self.method,
            "background": self.background,
            **scores,
            "means": {name: json_number(value) for name, value in self.means.items()},
            "blank": self.blank.to_json()["means"],
            "sources": dict(self.sources),
            "render_stats": dict(self.render_stats),
            "frames": [
                {**frame, "alpha_iou": overlap}
                for frame, overlap in zip(frames, self.alpha_iou, strict=True)
            ],
        }

    def row(self) -> dict[str, str | float | int | None]:
        """Return one row of the summary table."""
        stats = {key: self.render_stats.get(key) for key in ("avg_fps", "peak_memory_mib")}
        for key in ("gpu_peak_memory_mib", "gpu_power_w"):  # where a device has rendered
            if self.render_stats.get(key) is not None:
                stats[key] = self.render_stats[key]
        return {
            "method": self.method,
            "background": self.background,
            "frames": len(self.scores.frames),
            **self.means,
            **stats,
            **{f"{name}_sha256": digest for name, digest in self.sources.items()},
        }


def compare(
    folder: Path,
    references: Path,
    *,
    lpips: PictureDistance | None = None,
    frames: int | None = None,
    output_json: Path | None = None,
    force: bool = False,
) -> Scores:
    """Score a folder of PNG files against another, as they are.

    Args:
        folder: The folder to judge; see `find_pictures` for where it may lie.
        references: The folder to hold it against. The same folder gives inf dB, SSIM 1, LPIPS 0.
        lpips: The perceptual metric, where weights are at hand.
        frames: Compare only the frames with numbers below this.
        output_json: Where to write all scores.
        force: Whether `output_json` may be overwritten.

    Raises:
        UserError: A frame is on one side only, damaged, or of another size; or the output exists.
    """
    _require_free(output_json, force)
    ours, theirs = _below(find_pictures(folder), frames), _below(find_pictures(references), frames)
    require_same_frames(ours, folder, theirs, references)
    pairs = (
        Pair(theirs[number].stem, _opaque(ours[number]), _opaque(theirs[number]))
        for number in theirs
    )
    scores = evaluate_pairs(pairs, lpips)
    if output_json is not None:
        _write_results(output_json, scores.to_json())
    return scores


def pipeline(
    render_dir: Path,
    teacher_renders: Path,
    *,
    background: str = "white",
    method_name: str = "",
    summary: Path | None = None,
    render_stats: Path | None = None,
    output_json: Path | None = None,
    lpips: PictureDistance | None = None,
    frames: int | None = None,
    sources: Mapping[str, str] | None = None,
    force: bool = False,
) -> Evaluation:
    """Compose a render folder's RGBA over a background, score it and record the result.

    Args:
        render_dir: The render folder, with `rgba_npz`.
        teacher_renders: PNG files of the teacher: RGBA, or RGB on `background`. With an `rgba_npz`
            beside or in their folder that is taken instead, and silhouettes are compared too.
        background: "white" or "black".
        method_name: Name of the row in the summary.
        summary: Summary CSV to append a row to.
        render_stats: `render_stats.json`; by default the one in the render folder, if any.
        output_json: Where to write all scores per frame.
        lpips: The perceptual metric, where weights are at hand; the blank row goes without.
        frames: Evaluate only the frames with numbers below this.
        sources: Digests of what the frames were made from (config, checkpoint, data), recorded.
        force: Whether `output_json` may be overwritten.

    Raises:
        UserError: A frame is on one side only, damaged or of another size; the teacher's files are
            on another background; or the output exists.
    """
    _require_free(output_json, force)
    stats = _read_stats(Path(render_dir), render_stats)
    ours = _below(find_rgba(render_dir), frames)
    if not ours:
        raise UserError(
            f"{render_dir} has no frames in rgba_npz",
            hint="render with --store-rgba, or compare PNG files as they are: `eval compare`",
        )
    theirs = _below(find_teacher(teacher_renders), frames)
    require_same_frames(ours, render_dir, theirs, teacher_renders)
    result = evaluate_frames(
        _read_pairs(ours, theirs, background),
        background=background,
        lpips=lpips,
        method=method_name,
        sources=sources or {},
        render_stats=stats,
    )
    if output_json is not None:
        _write_results(output_json, result.to_json())
    if summary is not None:
        append_summary(summary, result.row())
    return result


def evaluate_frames(
    pairs: Iterable[FramePair],
    *,
    background: str = "white",
    lpips: PictureDistance | None = None,
    method: str = "",
    sources: Mapping[str, str] | None = None,
    render_stats: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score frames held in memory; pairs are taken one at a time, so they may be rendered here."""
    colour = BACKGROUNDS[background]
    overlaps: list[float | None] = []
    blanks: list[Scores] = []

    def composed() -> Iterator[Pair]:
        for pair in pairs:
            alpha = pair.reference_alpha
            mask = None if alpha is None else alpha > VISIBLE_ALPHA
            image = composite(pair.rgba, colour)
            yield Pair(pair.name, image, pair.reference, mask)
            # Resumed once the frame has been scored, so its sizes are known to agree.
            overlaps.append(None if alpha is None else alpha_iou(pair.rgba[..., 3], alpha))
            bare = np.broadcast_to(np.rint(np.array(colour) * 255).astype(np.uint8), image.shape)
            blanks.append(evaluate_pairs([Pair(pair.name, bare, pair.reference, mask)]))

    scores = evaluate_pairs(composed(), lpips)
    blank = Scores(
        frames=tuple(frame for one in blanks for frame in one.frames),
        images_sha256="",
        references_sha256=scores.references_sha256,
        lpips_weights=None,
    )
    return Evaluation(
        background, scores, blank, tuple(overlaps), method, sources or {}, render_stats or {}
    )


def alpha_iou(alpha: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the overlap of two silhouettes at alpha 1/2; None if both are empty."""
    solid, wanted = alpha > SOLID_ALPHA, reference > SOLID_ALPHA
    union = np.count_nonzero(solid | wanted)
    return np.count_nonzero(solid & wanted) / union if union else None


def find_teacher(folder: Path) -> dict[int, Path]:
    """Find the teacher's frames: its `rgba_npz` if it kept one, else its PNG files."""
    folder = Path(folder)
    return find_rgba(folder) or find_rgba(folder.parent) or find_pictures(folder)


def _read_pairs(
    ours: Mapping[int, Path], theirs: Mapping[int, Path], background: str
) -> Iterator[FramePair]:
    for number, path in theirs.items():
        reference = read_reference(path, background)
        _require_background(path, reference, background)
        alpha = None if reference.rgba is None else reference.rgba[..., 3]
        yield FramePair(f"{number:05d}", read_rgba(ours[number]), reference.pixels, alpha)


class Reference(NamedTuple):
    """A teacher's frame over a background."""

    pixels: np.ndarray  # uint8 [h, w, 3]
    rgba: np.ndarray | None  # premultiplied floats [h, w, 4], where the file has alpha


def read_reference(path: Path, background: str) -> Reference:
    """Read a teacher's frame, composed over the background unless the file is opaque."""
    if path.suffix == ".npz":
        rgba = read_rgba(path)
    else:
        pixels = read_any_png(path)
        if pixels.shape[2] == 3:
            return Reference(pixels, None)
        rgba = pixels.astype(np.float32) / 255
        rgba[..., :3] *= rgba[..., 3:]
    return Reference(composite(rgba, BACKGROUNDS[background]), rgba)


def _require_background(path: Path, reference: Reference, background: str) -> None:
    """Refuse an opaque frame whose four corners are the other background."""
    if reference.rgba is not None:
        return
    other = next(name for name in BACKGROUNDS if name != background)
    corners = reference.pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    if (corners == np.rint(np.array(BACKGROUNDS[other]) * 255)).all():
        raise UserError(
            f"{path} is on {other}, the evaluation on {background}",
            hint=f"evaluate with --background {other}, or give the teacher's render folder with"
            " rgba_npz",
        )


def _opaque(path: Path) -> np.ndarray:
    pixels = read_any_png(path)
    if pixels.shape[2] == 4 and (pixels[..., 3] < 255).any():
        raise UserError(
            f"{path} is partly transparent, so its colours depend on a background",
            hint="use `featdistill eval pipeline`, which composes both sides first",
        )
    return np.ascontiguousarray(pixels[..., :3])


def _below(files: dict[int, Path], frames: int | None) -> dict[int, Path]:
    return {n: path for n, path in files.items() if frames is None or n < frames}


def require_same_frames(
    ours: Mapping[int, Path], folder: Path, theirs: Mapping[int, Path], references: Path
) -> None:
    """Refuse two sets of frames of which one lacks a number, and name what it lacks."""
    for here, there, place in ((ours, theirs, references), (theirs, ours, folder)):
        missing = sorted(here.keys() - there.keys())
        if missing:
            named = ", ".join(f"{number:05d}" for number in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise UserError(
                f"{place} lacks frames {named}{more} ({len(ours)} in {folder}, {len(theirs)} in"
                f" {references})",
                hint="render them, or evaluate the first N of both sides with --frames N",
            )


def _require_free(output: Path | None, force: bool) -> None:
    if output is not None and Path(output).exists() and not force:
        raise UserError(
            f"{output} holds results already", hint="give --force to replace them, or another path"
        )


def _read_stats(render_dir: Path, explicit: Path | None) -> dict[str, Any]:
    path = render_dir / STATS_FILE if explicit is None else Path(explicit)
    if explicit is None and not path.exists():
        return {}
    stats = read_json(path)
    if not isinstance(stats, dict):
        raise UserError(f"{path}: expected an object", hint="render again to write it")
    return stats


def _write_results(path: Path, content: dict[str, Any]) -> None:
    make_folder(Path(path).parent)
    write_json(Path(path), content)
