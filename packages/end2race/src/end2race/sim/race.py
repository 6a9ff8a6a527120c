"""One car on one track against the clock.

Progress is counted by gates across the road, one each metre, that have to be passed in their order
and forwards. A car that turns round, stands, or sits near another part of the track gains nothing
by it, which a counter of the nearest centreline point would give.
"""

from __future__ import annotations

import math

import numpy as np

from end2race.sim.appearance import Appearance
from end2race.sim.car import CarState, advance
from end2race.sim.kernels import CONTROL_HZ, cast
from end2race.sim.track import SPACING_M, Track

GATE_POINTS = round(1.0 / SPACING_M)
_REACH_POINTS = 20  # the car moves less than that in one control period
_WIDEST_M = 20.0  # half a road is narrower


class Race:
    """The state of a lap: where the car is, which gate comes next, how it has gone.

    Attributes:
        track: the road.
        look: its appearance.
        start: index of the centreline point where the lap begins and ends.
        state: where the car is.
        nearest: index of the centreline point next to it.
        passed: gates that were passed.
        steps: control periods so far.
        crashed: whether it has hit a wall.
        lateral_m: offset from the centreline at each step.
        wheel_angles_deg: commanded angle at each step.
        path: positions [x, y] (m), the start first.
    """

    def __init__(
        self,
        track: Track,
        look: Appearance,
        start: int = 0,
        *,
        lateral_m: float = 0.0,
        yaw_rad: float = 0.0,
        speed: float = 1.5,
    ) -> None:
        """Put the car on the track.

        Args:
            track: The road.
            look: Its appearance.
            start: Index of the centreline point.
            lateral_m: Offset to the left of it.
            yaw_rad: Angle to the left of the direction of travel.
            speed: Speed in m/s.
        """
        self.track, self.look, self.start = track, look, start % len(track.centreline)
        x, y = track.centreline[self.start]
        heading = float(track.heading[self.start])
        self.state = CarState(
            float(x) - math.sin(heading) * lateral_m,
            float(y) + math.cos(heading) * lateral_m,
            heading + yaw_rad,
            float(speed),
            0.0,
        )
        self.nearest = self.start
        self.passed = self.steps = 0
        self.crashed = False
        self.lateral_m: list[float] = []
        self.wheel_angles_deg: list[float] = []
        self.path: list[tuple[float, float]] = [(self.state.x, self.state.y)]
        self.gates = math.ceil(len(track.centreline) / GATE_POINTS)

    @property
    def pose(self) -> tuple[float, float, float]:
        """Position (m) and yaw (rad) of the rear axle."""
        return self.state.x, self.state.y, self.state.yaw

    @property
    def completed(self) -> bool:
        """Whether the whole lap is done."""
        return self.passed == self.gates

    @property
    def over(self) -> bool:
        """Whether the car will not move any more."""
        return self.completed or self.crashed

    @property
    def progress(self) -> float:
        """Share of the gates that were passed, in their order."""
        return self.passed / self.gates

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self.steps / CONTROL_HZ

    def step(self, wheel_angle_deg: float, speed_m_s: float) -> None:
        """Drive one control period under a command; nothing happens once the race is over.

        A command that is not finite counts as a crash: no car takes it.
        """
        if self.over:
            return
        self.steps += 1
        if not (math.isfinite(wheel_angle_deg) and math.isfinite(speed_m_s)):
            self.crashed = True
            return
        before = self.state
        self.state, self.crashed = advance(
            self.track.field, before, math.radians(wheel_angle_deg), speed_m_s
        )
        while not self.completed and self._passes_next_gate(before):
            self.passed += 1
        self.nearest, offset = self.track.nearest(
            self.state.x, self.state.y, self.nearest, _REACH_POINTS
        )
        self.lateral_m.append(offset)
        self.wheel_angles_deg.append(wheel_angle_deg)
        self.path.append((self.state.x, self.state.y))

    def _passes_next_gate(self, before: CarState) -> bool:
        """Whether the car has crossed the next gate's line, forwards and within the road."""
        points = min((self.passed + 1) * GATE_POINTS, len(self.track.centreline))
        index = (self.start + points) % len(self.track.centreline)
        post = self.track.centreline[index]
        ahead = np.array([math.cos(self.track.heading[index]), math.sin(self.track.heading[index])])
        now = np.array([self.state.x, self.state.y]) - post
        then = np.array([before.x, before.y]) - post
        if not then @ ahead < 0 <= now @ ahead:
            return False
        left = np.array([-ahead[1], ahead[0]])
        across = float(now @ left)
        # The road ends at the wall, which a map may have farther away than the table's widths.
        side = left if across > 0 else -left
        road = cast(self.track.field, *post.tolist(), *side.tolist(), _WIDEST_M)
        return abs(across) <= road + SPACING_M
