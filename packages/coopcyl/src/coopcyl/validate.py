"""Is a data set what it says it is?  Every answer has its number, its limit and a remedy.

The limits come from geometry, not from experience: the covered share of the panorama follows from
the rig, the road is flat only if depth is z in metres, the LiDAR sees the same surfaces as the
depth files, and `extrinsic` must say the same as the poses.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from coopcyl import checks
from coopcyl.checks import Check
from coopcyl.data.errors import DataError
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.tree import AgentFrame, Tree
from coopcyl.measure import Measured, MeasuredPair, Measurer, measure_pair


@dataclass(frozen=True)
class Validation:
    """All answers about one split."""

    root: str
    split: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.level != "fail" for check in self.checks)

    def to_json(self) -> str:
        """Return the answers as JSON."""
        content = asdict(self) | {"passed": self.passed}
        return json.dumps(content, indent=2, ensure_ascii=False)


def validate(
    tree: Tree, reader: PanoramaReader, samples: int, say: Callable[[str], None] = lambda _: None
) -> Validation:
    """Measure evenly spread times of a split and judge them.

    Args:
        tree: The split; read with `strict=False` so that its problems can be listed.
        reader: How panoramas are made.
        samples: Times whose vehicles are all read; 0: every one.
        say: Told each file that could not be read.
    """
    count = min(samples or len(tree.frames), len(tree.frames))
    chosen = [
        tree.frames[i] for i in np.linspace(0, len(tree.frames) - 1, count).round().astype(int)
    ]
    measurer = Measurer(reader)
    measured: list[Measured] = []
    pairs: list[MeasuredPair] = []
    unread: list[tuple[AgentFrame, str]] = []
    for frame in chosen:
        together = []  # only the views of one time are in memory
        for agent in frame.agents:
            try:
                together.append(measurer.measure(agent))
            except DataError as error:
                unread.append((agent, error.message))
                say(error.message)
        measured += [numbers for numbers, _ in together]
        pairs += [measure_pair(*two) for two in itertools.combinations(together, 2)]
    answers = [checks.tree(tree), checks.vehicles(tree.frames), checks.files(chosen, unread)]
    if measured:
        answers += [
            checks.resolution(measured, reader.panorama),
            checks.coverage(measured, reader.panorama),
            checks.cameras(measured),
            checks.extrinsics(measured),
            checks.mounts(measured),
            checks.masks(measured),
            checks.depth_unit(measured),
            checks.lidar(measured),
            checks.relative_poses(pairs),
            checks.overlap_share(pairs),
            checks.duplicates(measured),
        ]
    return Validation(str(tree.root), tree.split, tuple(answers))
