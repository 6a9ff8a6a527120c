"""What a data set gives without learning: trivial poses below, true matches above.

Every result of a network stands between these rows. `true matches` has the true range of each token
and the true partner of each token, so its error is that of the token size and the solver alone.
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np

from coopcyl.data.errors import DataError
from coopcyl.data.frame_yaml import read_frame
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.tree import AgentFrame, Frame
from coopcyl.geometry.alignment import align
from coopcyl.geometry.carla import inverse, pose_from_cords, to_opencv
from coopcyl.geometry.covisibility import relative_pose
from coopcyl.geometry.matching import matched_points, tokens_of, true_matches
from coopcyl.geometry.view import View
from coopcyl.metrics import pose_baselines, pose_metrics

TOKENS_PER_TURN = 64


def rows(
    frames: Sequence[Frame],
    reader: PanoramaReader,
    samples: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, float]]:
    """Return pose metrics by row: identity, mean translation, GPS, true matches.

    Args:
        frames: Of a split; those with at least two vehicles count.
        reader: How panoramas are made.
        samples: Times to read, evenly spread; 0: all.
        say: Told which pairs could not be solved; they count as the identity.

    Raises:
        DataError: No time has two vehicles, or a file cannot be read.
    """
    usable = [frame for frame in frames if sum(a.agent >= 0 for a in frame.agents) > 1]
    if not usable:
        raise DataError(
            f"none of {len(frames)} times has two vehicles",
            hint="take a split with more vehicles per scenario",
        )
    count = min(samples or len(usable), len(usable))
    truths, gps, solved = [], [], []
    for index in np.linspace(0, len(usable) - 1, count).round().astype(int):
        agents = [agent for agent in usable[index].agents if agent.agent >= 0]
        views = {agent.agent: reader.read(agent) for agent in agents}
        for first, second in permutations(agents, 2):
            pair = views[first.agent], views[second.agent]
            truths.append(relative_pose(*pair))
            gps.append(gps_pose(first, second))
            pose = solve_with_true_matches(*pair)
            if pose is None:
                say(f"{first} and {second.agent}: too few matches, counted as the identity")
            solved.append(np.eye(4) if pose is None else pose)
    known = [pose for pose in gps if pose is not None]
    result = pose_baselines(truths, known if len(known) == len(gps) else None)
    return result | {"true matches": pose_metrics(solved, truths)}


def solve_with_true_matches(first: View, second: View) -> np.ndarray | None:
    """Return the pose that the solver finds from true ranges and matches; None if it cannot."""
    stride = max(1, first.table.panorama.width // TOKENS_PER_TURN)
    index0, index1 = true_matches(first, second, stride)
    tokens = tokens_of(first, stride), tokens_of(second, stride)
    matches = matched_points(*tokens, index0, index1, np.ones(len(index0)))
    result = align(matches, np.random.default_rng(0))
    return None if result is None else result.pose


def gps_pose(first: AgentFrame, second: AgentFrame) -> np.ndarray | None:
    """Return the relative pose by the vehicles' own localisation; None where one has none.

    It is a pose of vehicles, as `predicted_ego_pos` is; the LiDARs are moved with them.
    """
    rigs = []
    for agent in (first, second):
        record = read_frame(agent.yaml)
        if record.gps_cords is None or record.true_cords is None:
            return None
        mount = inverse(pose_from_cords(record.true_cords)) @ pose_from_cords(record.lidar_cords)
        rigs.append(to_opencv(pose_from_cords(record.gps_cords) @ mount))
    return inverse(rigs[0]) @ rigs[1]
