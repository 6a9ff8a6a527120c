"""Several drivers on the same tracks, from the same starts, in the same colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loom.files import write_json

from end2race.film import Film
from end2race.sim.closed_loop import (
    LIMIT_S,
    ConstantDriver,
    CopycatDriver,
    Entry,
    ExpertDriver,
    LapResult,
    Policy,
    drive,
    entries,
    scanner_of,
    unseen_tracks,
)
from end2race.sim.score import Score, score
from end2race.sim.sensors import Lidar
from end2race.sim.track import Track

if TYPE_CHECKING:
    from end2race.driver import HiddenMode

CONSTANT_M_S = 2.0


class Heat(NamedTuple):
    """A driver's races.

    Attributes:
        entries: the starts, their races driven to the end.
        results: how each ended.
        film: of the first race, if it was filmed.
    """

    entries: list[Entry]
    results: list[LapResult]
    film: Film | None


@dataclass(frozen=True)
class Setting:
    """Where to drive.

    Attributes:
        tracks: number of procedural tracks, none of which a dataset of `sim-collect` has, or
            tracks that were read.
        seeds: each puts one car on every track and draws its start and colours.
        fixed_look: one appearance for all.
        limit_s: when a car that is still on its way is stopped.
        scanner: LiDAR of the cars; one with the beams that a driver knows, if None.
    """

    tracks: int | Sequence[Track] = 8
    seeds: Sequence[int] = (0,)
    fixed_look: bool = False
    limit_s: float = LIMIT_S
    scanner: Lidar | None = None

    def entries(self) -> list[Entry]:
        """Put the cars at their starts."""
        tracks = unseen_tracks(self.tracks) if isinstance(self.tracks, int) else self.tracks
        return entries(tracks, self.seeds, fixed_look=self.fixed_look)


def baselines() -> dict[str, Policy]:
    """Return the drivers that everything is compared with."""
    return {
        "copycat": CopycatDriver(),
        "constant": ConstantDriver(0.0, CONSTANT_M_S),
        "expert": ExpertDriver(),
    }


def networks(checkpoints: Sequence[Path], hidden_mode: HiddenMode) -> dict[str, Policy]:
    """Load trained drivers, by the names of their runs or files; equal names are numbered.

    A run that is called like a baseline gets a number, too, so that neither hides the other.
    """
    from end2race.driver import Driver

    drivers: dict[str, Policy] = {}
    taken = baselines().keys()
    for path in checkpoints:
        name, number = path.resolve().name, 2
        while name in drivers or name in taken:
            name, number = f"{path.resolve().name} ({number})", number + 1
        drivers[name] = Driver.load(path, hidden_mode)
    return drivers


def race_day(
    drivers: Mapping[str, Policy],
    setting: Setting,
    *,
    blank: bool = False,
    film: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Heat]:
    """Let each driver drive every start.

    Args:
        drivers: By name.
        setting: Where.
        blank: Give black images and empty clouds.
        film: Name of the driver whose first race is filmed.
        say: Called with one line for each driver.
    """
    heats = {}
    for name, driver in drivers.items():
        scanner = setting.scanner or scanner_of(driver)
        if driver.beams not in (None, scanner.beams):
            say(f"[lidar] {name} learned from {driver.beams} beams and drives with {scanner.beams}")
        camera_man = Film(eye=driver.eye, scanner=scanner) if name == film else None
        starts = setting.entries()
        results = drive(
            driver,
            starts,
            limit_s=setting.limit_s,
            scanner=scanner,
            blank=blank,
            watch=camera_man,
        )
        heats[name] = Heat(starts, results, camera_man)
        laps = sum(result.completed for result in results)
        say(f"[drive] {name}: {laps} of {len(results)} laps")
    return heats


def scores(heats: Mapping[str, Heat]) -> dict[str, Score]:
    """Take each driver's races together."""
    return {name: score(heat.results) for name, heat in heats.items()}


def write_results(path: Path, heats: Mapping[str, Heat]) -> None:
    """Write every race and the scores as JSON."""
    content = {
        name: {
            "score": asdict(score(heat.results)),
            "races": [asdict(result) for result in heat.results],
        }
        for name, heat in heats.items()
    }
    write_json(path, content)
