"""Scenes from the command line: what is in one, and a smaller copy of it."""

from __future__ import annotations

from pathlib import Path

from loom.errors import UserError

from featdistill.data.nerf_synthetic import read_views, write_views

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


def describe_scene(folder: Path, width: int | None) -> str:
    """Read a scene whole; say what is in it."""
    lines = []
    for split in _splits_of(folder):
        views = read_views(folder, split, width=width)
        cameras = views.cameras
        alpha = views.rgba[..., 3]
        distances = cameras.centres.norm(dim=1)
        lines.append(
            f"{split}: {len(views)} views of {cameras.width}x{cameras.height}, focal length "
            f"{cameras.focal_px:.2f} px, cameras {distances.min():.3f} to {distances.max():.3f} "
            f"from the origin, {(alpha > 0).float().mean():.1%} of the pixels show something"
        )
    return "\n".join(lines)


def _splits_of(folder: Path) -> list[str]:
    splits = _present(folder)
    if not splits:
        raise UserError(
            f"{folder} has no transforms_train.json and no transforms_test.json",
            hint="give a folder in NeRF-synthetic layout",
        )
    return splits


def _present(folder: Path) -> list[str]:
    return [split for split in SPLITS if (folder / f"transforms_{split}.json").is_file()]
