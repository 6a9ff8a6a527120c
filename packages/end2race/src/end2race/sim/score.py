"""What a set of races says about a driver, with the uncertainty that few races leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from loom.evaluation.statistics import Interval, wilson_interval

from end2race.sim.closed_loop import LapResult

COLUMNS = (
    "driver",
    "laps",
    "of",
    "95 % interval",
    "progress",
    "collisions/km",
    "lap / expert",
    "off centre m",
    "jerk deg/s2",
)


@dataclass(frozen=True)
class Score:
    """A driver's races taken together.

    Attributes:
        laps: completed laps.
        races: races driven.
        interval: Wilson interval of the share of completed laps.
        progress: mean share of a lap.
        collisions_per_km: collisions by driven kilometre; None where nothing was driven.
        lap_ratio: mean of lap time over the expert's, of completed laps; None without one.
        mean_abs_lateral_m: mean distance from the centreline.
        steering_jerk_deg_s2: mean absolute second difference of the wheel angle.
    """

    laps: int
    races: int
    interval: tuple[float, float]
    progress: float
    collisions_per_km: float | None
    lap_ratio: float | None
    mean_abs_lateral_m: float
    steering_jerk_deg_s2: float


def score(results: Sequence[LapResult]) -> Score:
    """Take races together; there must be at least one."""
    laps = sum(result.completed for result in results)
    share = wilson_interval(laps, len(results))
    if not isinstance(share, Interval):
        raise ValueError("no race to score")
    driven_km = sum(result.distance_m for result in results) / 1000
    ratios = [r.lap_s / r.expert_lap_s for r in results if r.lap_s and r.expert_lap_s]
    return Score(
        laps=laps,
        races=len(results),
        interval=(share.low, share.high),
        progress=float(np.mean([result.progress for result in results])),
        collisions_per_km=sum(r.collisions for r in results) / driven_km if driven_km else None,
        lap_ratio=float(np.mean(ratios)) if ratios else None,
        mean_abs_lateral_m=float(np.mean([result.mean_abs_lateral_m for result in results])),
        steering_jerk_deg_s2=float(np.mean([result.steering_jerk_deg_s2 for result in results])),
    )


def score_rows(scores: Mapping[str, Score]) -> list[list[str | int | float | None]]:
    """Return the rows of `COLUMNS`, one for each driver."""
    return [
        [
            name,
            each.laps,
            each.races,
            f"{each.interval[0]:.2f} to {each.interval[1]:.2f}",
            round(each.progress, 3),
            None if each.collisions_per_km is None else round(each.collisions_per_km, 1),
            None if each.lap_ratio is None else round(each.lap_ratio, 3),
            round(each.mean_abs_lateral_m, 3),
            round(each.steering_jerk_deg_s2, 1),
        ]
        for name, each in scores.items()
    ]
