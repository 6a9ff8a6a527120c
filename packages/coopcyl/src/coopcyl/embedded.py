"""The data set that every clone can make: a few synthetic crossings in OPV2V's files."""

from collections.abc import Callable
from pathlib import Path

from coopcyl.config import DataSection
from coopcyl.data.synth.write import SynthOptions, write_tree
from coopcyl.data.tree import Tree, read_skip_list, read_tree

ROOT = Path("data/coopcyl/crossings")
OPTIONS = SynthOptions(scenarios=3, vehicles=(2, 3), width=400)


def open_tree(data: DataSection, say: Callable[[str], None]) -> Tree:
    """List the split that the settings name; without a root, the embedded one.

    Args:
        data: The settings.
        say: Told when the embedded data set is written.
    """
    root = data.root
    if root is None:
        root = ROOT
        if not (root / data.split).is_dir() and data.split == OPTIONS.split:
            count = write_tree(root, OPTIONS)
            say(f"[data] no data.root: {count} synthetic vehicle frames were written to {root}")
    skip = read_skip_list(data.skip) if data.skip else ()
    return read_tree(root, data.split, data.depth(), strict=data.strict, skip=skip)
