"""The OPV2V folder tree: which vehicles have which files at which times.

    {root}/{split}/{scenario}/{agent}/{time}.yaml, {time}.pcd, {time}_camera{i}.png

Agents are integers; negative ones are roadside units and never the ego vehicle, which is the one
with the smallest id. Times have six digits (five in the documentation). `*additional*.yaml` files
belong to other tools. Some scenarios lack one camera altogether; it is then left out of the rig,
and the coverage mask says so. A camera that is missing only at some times is a fault.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loom.errors import UserError
from loom.files import explained, read_text

from coopcyl.data.errors import DataError

if TYPE_CHECKING:
    from coopcyl.data.depth import DepthSource

_AGENT = re.compile(r"^-?\d{1,9}$")
_FRAME_FILE = re.compile(r"^(\d{5,6})\.yaml$")
_IMAGE = re.compile(r"^(\d{5,6})_(camera\d+)\.png$")


@dataclass(frozen=True)
class AgentFrame:
    """One vehicle at one time.

    Attributes:
        root: Of the data set.
        split: `train`, `validate`, `test`, `test_culvercity` or any folder.
        scenario: Folder of the scenario.
        agent: The vehicle's id; negative for a roadside unit.
        time: Digits of the file name.
        cameras: Names of the cameras that this scenario has, in order.
    """

    root: Path
    split: str
    scenario: str
    agent: int
    time: str
    cameras: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.root / self.split / self.scenario / str(self.agent)

    @property
    def yaml(self) -> Path:
        """Poses and cameras."""
        return self.folder / f"{self.time}.yaml"

    @property
    def pcd(self) -> Path:
        """The LiDAR's points."""
        return self.folder / f"{self.time}.pcd"

    def image(self, camera: str) -> Path:
        """A camera's picture."""
        return self.folder / f"{self.time}_{camera}.png"

    def __str__(self) -> str:
        return f"{self.scenario}/{self.agent}/{self.time}"


@dataclass(frozen=True)
class Frame:
    """All vehicles of a scenario at one time, the ego vehicle first, roadside units last."""

    scenario: str
    time: str
    agents: tuple[AgentFrame, ...]


@dataclass(frozen=True)
class Problem:
    """Something that keeps a vehicle's frame from being used.

    Attributes:
        place: `scenario/agent/time`, or a folder.
        message: What is wrong.
        only_depth: Whether depth files are all that is missing.
    """

    place: str
    message: str
    only_depth: bool = False


@dataclass(frozen=True)
class Tree:
    """One split of a data set.

    Attributes:
        root: Of the data set.
        split: Its folder.
        frames: Every time of every scenario with at least one usable vehicle.
        problems: What was left out, and why.
        notes: What is unusual and harmless, such as a scenario without one camera.
        skipped: How many vehicle frames the user's skip list took out.
    """

    root: Path
    split: str
    frames: tuple[Frame, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    skipped: int = 0

    def sets(self, least: int = 1) -> tuple[Frame, ...]:
        """Return the frames with at least so many vehicles."""
        return tuple(frame for frame in self.frames if len(frame.agents) >= least)


def read_tree(
    root: Path,
    split: str,
    depth: "DepthSource | None" = None,
    *,
    strict: bool = True,
    skip: Collection[str] = (),
) -> Tree:
    """List a split without opening its files.

    Args:
        root: Folder of the splits.
        split: Name of one.
        depth: Whose files are needed as well.
        strict: Refuse a split with missing files; otherwise such vehicle frames are left out, and
            counted and named in `problems`.
        skip: What to leave out, usable or not: a vehicle's frame (`scenario/agent/time`), a vehicle
            (`scenario/agent`) or a scenario.

    Raises:
        UserError: The split is not there or holds nothing usable; in strict mode also the first
            problem.
    """
    folder = root / split
    if not folder.is_dir():
        known = _folders(root) if root.is_dir() else []
        raise UserError(
            f"{folder}: there is no such split"
            + (f"; {root} has {', '.join(known)}" if known else ""),
            hint="give the folder that holds train, validate, test, ... and one of their names",
        )
    frames: list[Frame] = []
    problems: list[Problem] = []
    notes: list[str] = []
    skipped = 0
    with explained(folder):
        scenarios = _folders(folder)
        for scenario in scenarios:
            wrong: list[Problem] = []
            remarks: list[str] = []
            usable = _scenario(root, split, scenario, depth, wrong, remarks)
            kept = [each for each in usable if not _is_listed(str(each), skip)]
            left = [each for each in wrong if not _is_listed(each.place, skip)]
            skipped += len(usable) - len(kept) + len(wrong) - len(left)
            problems += left
            notes += [] if scenario in skip else remarks
            by_time: dict[str, list[AgentFrame]] = {}
            for each in kept:
                by_time.setdefault(each.time, []).append(each)
            frames += [
                Frame(scenario, time, tuple(sorted(agents, key=_ego_first)))
                for time, agents in sorted(by_time.items())
            ]
    if problems and (strict or not frames):
        raise _unusable(folder, problems)
    if not frames:
        raise UserError(
            f"{folder}: no vehicle frames in {len(scenarios)} scenario folders",
            hint="expected {scenario}/{agent}/{time}.yaml and {time}_camera0.png below it",
        )
    return Tree(root, split, tuple(frames), tuple(problems), tuple(notes), skipped)


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


def _unusable(folder: Path, problems: list[Problem]) -> DataError:
    first = problems[0]
    hint = "complete the data, or leave these frames out (dataset.strict=false, or dataset.skip)"
    if all(each.only_depth for each in problems):
        hint = (
            "OPV2V has no depth files of its own: say where yours are (dataset.depth_root, "
            "dataset.depth_format), take the LiDAR's points (dataset.depth_format=lidar), or do "
            "without (dataset.depth_format=none)"
        )
    return DataError(
        f"{folder}: {len(problems)} vehicle frames cannot be used; first {first.place}: "
        f"{first.message}",
        hint=hint,
    )


def read_skip_list(path: Path) -> frozenset[str]:
    """Read a file with one `scenario[/agent[/time]]` per line; # begins a comment."""
    lines = (line.split("#")[0].strip() for line in read_text(path).splitlines())
    return frozenset(line for line in lines if line)


def _is_listed(place: str, skip: Collection[str]) -> bool:
    """Tell whether a skip list has a place or a folder above it."""
    parts = place.split("/")
    return any("/".join(parts[:count]) in skip for count in range(1, len(parts) + 1))


def _ego_first(frame: AgentFrame) -> tuple[bool, int]:
    return frame.agent < 0, frame.agent


def _scenario(
    root: Path,
    split: str,
    scenario: str,
    depth: "DepthSource | None",
    problems: list[Problem],
    notes: list[str],
) -> list[AgentFrame]:
    """List one scenario's vehicle frames, and add what is wrong with the others."""
    result = []
    folder = root / split / scenario
    for agent_folder in sorted(folder.iterdir()):
        if not agent_folder.is_dir():
            continue
        if not _AGENT.match(agent_folder.name):
            notes.append(f"{scenario}/{agent_folder.name}: not a vehicle's folder, passed over")
            continue
        names = {entry.name for entry in agent_folder.iterdir()}
        times = sorted(m[1] for m in map(_FRAME_FILE.match, names) if m)
        images: dict[str, set[str]] = {}
        for match in filter(None, map(_IMAGE.match, names)):
            images.setdefault(match[2], set()).add(match[1])
        cameras = tuple(sorted(images, key=lambda name: int(name[6:])))
        place = f"{scenario}/{agent_folder.name}"
        lacking = {f"camera{i}" for i in range(4)} - set(cameras)
        if cameras and lacking:
            notes.append(f"{place}: no images of {', '.join(sorted(lacking))} at any time")
        if not times:
            problems.append(Problem(place, "no {time}.yaml files"))
        lonely = {time for some in images.values() for time in some} - set(times)
        problems += [Problem(f"{place}/{t}", f"{t}.yaml is missing") for t in sorted(lonely)]
        for time in times:
            frame = AgentFrame(root, split, scenario, int(agent_folder.name), time, cameras)
            missing = [f"{time}_{c}.png" for c in cameras if time not in images[c]]
            if not cameras:
                missing = [f"{time}_camera0.png"]
            images_missing = bool(missing)
            missing += _missing_depth(frame, depth, names)
            if missing:
                more = f"and {len(missing) - 1} more are" if len(missing) > 1 else "is"
                message = f"{missing[0]} {more} missing"
                problems.append(Problem(str(frame), message, only_depth=not images_missing))
            else:
                result.append(frame)
    return result


def _missing_depth(frame: AgentFrame, depth: "DepthSource | None", names: set[str]) -> list[str]:
    if depth is None:
        return []
    paths = {depth.path(frame, camera) for camera in frame.cameras} - {None}
    return sorted(
        path.name
        for path in paths
        if path and not (path.name in names if path.parent == frame.folder else path.exists())
    )
