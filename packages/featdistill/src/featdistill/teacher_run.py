"""A teacher from the command line: fit it, find it, describe it, export it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from loom.checkpoint import Checkpoints, newest_folder
from loom.config import resolve
from loom.errors import UserError
from loom.run import Run
from loom.run_directory import settings_of

from featdistill.assess import assess_teacher, read_results
from featdistill.data.ply import ply_of, read_ply, write_ply
from featdistill.data.transforms import read_transforms
from featdistill.embedded import SCENE, embedded_scene
from featdistill.features import gaussian_features
from featdistill.figures import write_report
from featdistill.gaussians import Gaussians
from featdistill.restore import require_kind
from featdistill.scoring import print_scores
from featdistill.teacher import fit_teacher, go_on_from, read_scene
from featdistill.teacher_config import TeacherConfig


def run_teacher(
    source: Path | None,
    overrides: Sequence[str] | None,
    *,
    scene: Path | None = None,
    width: int | None = None,
    max_steps: int | None = None,
    directory: Path | None = None,
    resume: bool = False,
    archive: bool = False,
) -> Path:
    """Fit a teacher, score it on the test views, write the page; return the run directory."""
    if resume and directory is not None:
        require_kind(directory, "teacher")
    source = settings_of(source, directory, resume=resume, thread="featdistill")
    flags: dict[str, Any] = {
        "data.scene": scene,
        "data.width": width,
        "train.max_steps": max_steps,
    }
    resolved = resolve(TeacherConfig, source, overrides, flags=flags)
    if resolved.config.data.scene is None:
        typer.echo(
            f"[data] no scene given: fitting the embedded brick model in {SCENE} "
            "(--scene FOLDER takes your own)"
        )
        flags["data.scene"] = embedded_scene(typer.echo)
        resolved = resolve(TeacherConfig, source, overrides, flags=flags)
    if not resume and resolved.config.data.scene is not None:
        for split in ("train", "test"):  # what is missing is named before there is a run
            read_transforms(resolved.config.data.scene / f"transforms_{split}.json")
    if not resume and (model := resolved.config.start.model) is not None:
        go_on_from(model, resolved.config.gaussians)
        _require_it_stays(model, directory if archive else None)
    with Run.open(
        "featdistill",
        TeacherConfig,
        resolved,
        directory=directory,
        resume=resume,
        archive=archive,
    ) as run:
        gaussians, _ = fit_teacher(run.config, run)
        if run.is_main:
            _, test = read_scene(run.config, run)
            assess_teacher(gaussians, test, run.dir, say=run.info)
    if run.is_main:
        print_scores(read_results(run.dir))
        typer.echo(f"report: {write_report(run.dir)}")
    return run.dir


def _require_it_stays(model: Path, moved: Path | None) -> None:
    """Refuse to go on from a model in the directory that is moved aside for the new run."""
    if moved is not None and ply_of(model).resolve().is_relative_to(moved.resolve()):
        raise UserError(
            f"start.model: {model} lies in {moved}, which --archive moves aside",
            hint="give another --run-dir, or archive it before and name its new place",
        )


def export_teacher(source: Path, output: Path) -> str:
    """Write the gaussians of a teacher run's newest checkpoint as PLY; say how many."""
    folder = newest_folder(source)
    state = Checkpoints(folder.parent).load(folder).state["model"]
    fields = ("means", "log_scales", "rotations", "opacity_logits")
    missing = [name for name in (*fields, "sh_constant", "sh_rest") if name not in state]
    if missing:
        raise UserError(
            f"{folder} holds no gaussians ({', '.join(missing)} missing)",
            hint="give the directory of a `teacher fit` run",
        )
    sh = torch.cat([state["sh_constant"], state["sh_rest"]], dim=1)
    gaussians = Gaussians(*(state[name] for name in fields), sh)
    write_ply(output, gaussians)
    return f"{len(gaussians)} gaussians in {output}"


@dataclass(frozen=True)
class TeacherFacts:
    """What a 3DGS file holds; lengths are in world units."""

    file: str
    gaussians: int
    size_bytes: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    opacity_mean: float
    opacity_below_2_percent: float
    """Share of the gaussians that nearly nobody sees."""
    scale_median: float
    scale_largest: float
    features: int

    def __str__(self) -> str:
        extent = zip("xyz", self.low, self.high, strict=True)
        return "\n".join(
            [
                f"{self.file}: {self.gaussians} gaussians, {self.size_bytes / 2**20:.1f} MiB",
                "extent    " + ", ".join(f"{axis} {a:.3f} .. {b:.3f}" for axis, a, b in extent),
                f"opacity   mean {self.opacity_mean:.3f}, "
                f"{self.opacity_below_2_percent:.1%} below 0.02",
                f"scale     median {self.scale_median:.4f}, largest {self.scale_largest:.4f} "
                "world units",
                f"features  {self.features} per gaussian: f_dc, f_rest, opacity, log scale",
            ]
        )


def describe_teacher(path: Path) -> TeacherFacts:
    """Read a 3DGS file whole; return what is in it."""
    ply = ply_of(path)
    gaussians = read_ply(ply)
    opacity = gaussians.opacities
    scales = gaussians.scales.amax(dim=1)
    return TeacherFacts(
        str(ply),
        len(gaussians),
        ply.stat().st_size,
        tuple(gaussians.means.amin(dim=0).tolist()),
        tuple(gaussians.means.amax(dim=0).tolist()),
        float(opacity.mean()),
        float((opacity < 0.02).float().mean()),
        float(scales.median()),
        float(scales.max()),
        gaussian_features(gaussians).shape[1],
    )
