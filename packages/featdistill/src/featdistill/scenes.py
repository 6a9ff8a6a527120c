"""Scenes from the command line: what is in one, and a smaller copy of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loom.errors import UserError

from featdistill.data.nerf_synthetic import read_views, write_views
from featdistill.data.transforms import hint_of_layout

SPLITS = ("train", "val", "test")


def import_scene(source: Path, folder: Path, width: int) -> str:
    """Write a copy of a scene at a smaller width; say what was written.

    Raises:
        UserError: The target holds a scene already, or the source is damaged.
    """
    splits = _splits_of(source)
    if _present(folder):
        raise UserError(f"{folder} holds a scene already", hint="give another folder")
    lines = []
    for split in splits:
        views = read_views(source, split, width=width)
        write_views(folder, split, views)
        lines.append(f"{split}: {len(views)} views of {width}x{views.cameras.height}")
    return "\n".join([*lines, f"written to {folder}"])


@dataclass(frozen=True)
class SplitFacts:
    """What one split of a scene holds; distances are those of the cameras from the origin."""

    split: str
    views: int
    width: int
    height: int
    focal_px: float
    nearest: float
    farthest: float
    covered: float
    """Share of the pixels that show something."""

    def __str__(self) -> str:
        return (
            f"{self.split}: {self.views} views of {self.width}x{self.height}, focal length "
            f"{self.focal_px:.2f} px, cameras {self.nearest:.3f} to {self.farthest:.3f} "
            f"from the origin, {self.covered:.1%} of the pixels show something"
        )


def describe_scene(folder: Path, width: int | None) -> list[SplitFacts]:
    """Read a scene whole; return what is in each split."""
    found = []
    for split in _splits_of(folder):
        views = read_views(folder, split, width=width)
        cameras = views.cameras
        distances = cameras.centres.norm(dim=1)
        facts = SplitFacts(
            split,
            len(views),
            cameras.width,
            cameras.height,
            float(cameras.focal_px),
            float(distances.min()),
            float(distances.max()),
            float((views.rgba[..., 3] > 0).float().mean()),
        )
        found.append(facts)
    return found


def _splits_of(folder: Path) -> list[str]:
    splits = _present(folder)
    if not splits:
        raise UserError(
            f"{folder} has no transforms_train.json and no transforms_test.json",
            hint=hint_of_layout(folder),
        )
    return splits


def _present(folder: Path) -> list[str]:
    return [split for split in SPLITS if (folder / f"transforms_{split}.json").is_file()]
