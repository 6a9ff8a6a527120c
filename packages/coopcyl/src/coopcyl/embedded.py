"""Data sets that every clone can make: synthetic crossings in OPV2V's files, written once."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loom.files import explained

from coopcyl.config import DatasetSection
from coopcyl.data.synth.write import SynthOptions, write_tree
from coopcyl.data.tree import Tree, read_skip_list, read_tree

ROOT = Path("data/coopcyl/crossings")
OPTIONS = SynthOptions(scenarios=3, vehicles=(2, 3), width=400)
"""To look at: large images of a few crossings."""

TOWN = Path("data/coopcyl/town")
_TRAIN = SynthOptions(
    scenarios=300,
    vehicles=(3, 3),
    width=160,
    depth=("npy",),
    lidar=(8, 240),
    plain=0.5,
    kind="varied",
)
TOWN_SPLITS = {
    "train": _TRAIN,
    "validate": replace(
        _TRAIN, split="validate", scenarios=48, vehicles=(2, 2), kind="foreign", seed=1
    ),
}
"""To learn from: small images of many crossings, and others of another kind to judge on."""


def open_tree(dataset: DatasetSection, say: Callable[[str], None]) -> Tree:
    """List the split that the settings name; without a root, the embedded one.

    Args:
        dataset: The settings.
        say: Told when the embedded data set is written.
    """
    root = dataset.root
    if root is None:
        root = ROOT
        if dataset.split == OPTIONS.split:
            _write_once(root, OPTIONS, say)
    return list_split(root, dataset.split, dataset, say)


def open_town(dataset: DatasetSection, split: str, say: Callable[[str], None]) -> Tree:
    """List a split of a data set to learn from; without a root, that of the embedded town."""
    if dataset.root is None and split in TOWN_SPLITS:
        _write_once(TOWN, TOWN_SPLITS[split], say)
    return list_split(dataset.root or TOWN, split, dataset, say)


def list_split(root: Path, split: str, dataset: DatasetSection, say: Callable[[str], None]) -> Tree:
    """List a split as the settings want it, and say what of it is not used."""
    skip = read_skip_list(dataset.skip) if dataset.skip else ()
    tree = read_tree(root, split, dataset.depth(), strict=dataset.strict, skip=skip)
    if tree.problems:
        first = tree.problems[0]
        say(
            f"[data] {split}: {len(tree.problems)} vehicle frames left out; first {first.place}: "
            f"{first.message}"
        )
    if tree.skipped:
        say(f"[data] {split}: {tree.skipped} vehicle frames left out by {dataset.skip}")
    return tree


def _write_once(root: Path, options: SynthOptions, say: Callable[[str], None]) -> None:
    """Write a split unless it is there; it takes its name when all of it is written.

    An interrupted command leaves nothing that a later one would take for the whole. Of two that
    write at once, the second one finds the split of the first and drops its own.
    """
    folder = root / options.split
    if folder.is_dir():
        return
    say(f"[data] no dataset.root: {options.scenarios} synthetic scenarios are made first, once")
    with explained(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{options.split}.", dir=root) as partial:
            count = write_tree(Path(partial), options)
            try:
                (Path(partial) / options.split).rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    say(f"[data] {count} synthetic vehicle frames were written to {root}")
