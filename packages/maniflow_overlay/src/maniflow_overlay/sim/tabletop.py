"""The table in MuJoCo: contact, friction and perspective; the scene that is used where it can draw.

The hand hangs on a weld to a mocap body, which is led to the action's position in equal steps, so
that a step ends where it was told to. Two fingers close by position actuators; a block is held by
friction alone and can be missed, pushed away or dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from loom.errors import UserError

from maniflow_overlay.sim import colours, graphics
from maniflow_overlay.sim.camera import TableCamera
from maniflow_overlay.sim.scene import (
    BLOCK_HALF_M,
    BLOCKS,
    GOAL_RADIUS_M,
    Layout,
    Observation,
    Situation,
    draw_layout,
    hidden,
    reachable,
    vector_of,
)

MOVING, SETTLING = 36, 8  # physics steps of 4 ms in one step of control
FINGER_OPEN_M = 0.05  # from the middle to the inner face of a finger
CURTAIN_DISTANCE_M = 0.3
CURTAIN_SHARE = 0.9  # of the picture's height and width
_AWAY = (0.0, 0.0, 9.0)  # above the camera, which looks down


def _rgba(colour: tuple[float, float, float], alpha: float = 1.0) -> str:
    return " ".join(f"{value:g}" for value in (*colour, alpha))


def _model_xml(camera: TableCamera) -> str:
    blocks = "".join(
        f"""<body name="block{number}" pos="0 0 {BLOCK_HALF_M}"><freejoint/>
        <geom name="block{number}" type="box" size="{BLOCK_HALF_M} {BLOCK_HALF_M} {BLOCK_HALF_M}"
          mass="0.03" friction="1 0.01 0.001" condim="4" rgba="{_rgba(colours.BLOCK)}"/></body>"""
        for number in range(BLOCKS)
    )
    fingers = "".join(
        f"""<body pos="{sign * 0.006} 0 0"><joint name="{name}" type="slide" axis="{sign} 0 0"
          range="0 {FINGER_OPEN_M}" damping="4" armature="0.02"/>
        <geom type="box" pos="0 0 0.018" size="0.006 0.02 0.03" mass="0.02"
          friction="1.5 0.02 0.001" condim="4" rgba="{_rgba(colours.FINGER)}"/></body>"""
        for name, sign in (("left", -1), ("right", 1))
    )
    half = CURTAIN_DISTANCE_M * np.tan(np.radians(camera.fovy_deg) / 2) * CURTAIN_SHARE
    wide = half * camera.width / camera.height
    return f"""
    <mujoco>
      <statistic extent="1" center="0 0 0"/>
      <option timestep="0.004" cone="elliptic" impratio="10" integrator="implicitfast"/>
      <visual>
        <global offwidth="{camera.width}" offheight="{camera.height}"/>
        <quality shadowsize="0" offsamples="0"/>
        <map znear="0.05" zfar="20"/>
        <headlight ambient="0.45 0.45 0.45" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
      </visual>
      <worldbody>
        <light pos="0.3 -0.4 1.2" dir="-0.25 0.35 -1" directional="true" castshadow="false"
          diffuse="0.35 0.35 0.35" specular="0 0 0"/>
        <camera name="table" pos="{" ".join(map(str, camera.position_m))}"
          xyaxes="{camera.mujoco_axes()}" fovy="{camera.fovy_deg}"/>
        <geom name="table" type="plane" size="2 2 0.1" rgba="{_rgba(colours.TABLE)}"/>
        <geom name="goal" type="cylinder" size="{GOAL_RADIUS_M} 0.0005" pos="0 0 0.0005"
          contype="0" conaffinity="0" rgba="{_rgba(colours.GOAL)}"/>
        {blocks}
        <body name="target" mocap="true" pos="0 0 0.1"/>
        <body name="hand" pos="0 0 0.1" gravcomp="1"><freejoint name="hand"/>
          <geom type="box" pos="0 0 0.06" size="0.055 0.02 0.012" mass="0.2"
            contype="0" conaffinity="0" rgba="{_rgba(colours.HAND)}"/>
          <geom type="cylinder" pos="0 0 0.1" size="0.014 0.03" mass="0.05"
            contype="0" conaffinity="0" rgba="{_rgba(colours.HAND)}"/>
          {fingers}
        </body>
        <body name="curtain" mocap="true" pos="{" ".join(map(str, _AWAY))}">
          <geom type="box" size="{wide} {half} 0.002" contype="0" conaffinity="0"
            rgba="{_rgba(colours.CURTAIN)}"/>
        </body>
      </worldbody>
      <equality><weld body1="target" body2="hand" solref="0.008 1" torquescale="1"/></equality>
      <actuator>
        <position joint="left" kp="150" ctrlrange="0 {FINGER_OPEN_M}" forcerange="-6 6"/>
        <position joint="right" kp="150" ctrlrange="0 {FINGER_OPEN_M}" forcerange="-6 6"/>
      </actuator>
    </mujoco>"""


class Tabletop:
    """The MuJoCo scene.

    Args:
        camera: What it is seen by.

    Raises:
        UserError: MuJoCo cannot draw on this machine.
    """

    def __init__(self, camera: TableCamera | None = None) -> None:
        reason = graphics.missing()
        if reason:
            raise UserError(
                f"the MuJoCo scene cannot be drawn: {reason}",
                hint=f"{graphics.remedy(reason)}, or take --scene planar",
            )
        mujoco = graphics.mujoco()
        self.camera = camera or TableCamera()
        self.situation = Situation(0)
        self.layout: Layout = draw_layout(0)
        self.steps = 0
        self._mujoco = mujoco
        self._model: Any = mujoco.MjModel.from_xml_string(_model_xml(self.camera))
        self._data: Any = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, self.camera.height, self.camera.width)
        self._opening = 1.0
        self._target_row = self._model.body("target").mocapid[0]
        self._curtain_row = self._model.body("curtain").mocapid[0]
        rotation = self.camera.rotation()
        self._curtain_place = np.array(self.camera.position_m) + CURTAIN_DISTANCE_M * rotation[2]
        # The curtain's axes are the camera's: right, up and back.
        axes = np.stack([rotation[0], -rotation[1], -rotation[2]], axis=1)
        turned = np.zeros(4)
        mujoco.mju_mat2Quat(turned, axes.ravel())
        self._data.mocap_quat[self._curtain_row] = turned
        self._curtain_turn = turned

    def reset(self, seed: int, *, occluded: bool = False, marked: bool = False) -> Observation:
        """Begin the episode of a seed."""
        self.situation = Situation(seed, occluded, marked)
        self.layout = draw_layout(seed)
        self.steps = 0
        model, data = self._model, self._data
        self._mujoco.mj_resetData(model, data)
        self._paint()
        for number, (x, y) in enumerate(self.layout.blocks):
            data.joint(model.body(f"block{number}").jntadr[0]).qpos[:2] = x, y
        data.joint("hand").qpos[:3] = self.layout.tip
        for finger in ("left", "right"):
            data.joint(finger).qpos[:] = FINGER_OPEN_M
        data.mocap_pos[self._target_row] = self.layout.tip
        data.mocap_quat[self._curtain_row] = self._curtain_turn
        self._lead(self.layout.tip, 1.0)
        return self._observation()

    def step(self, action: np.ndarray) -> Observation:
        """Move towards an action, (14,), at most `STEP_M`."""
        self._lead(*reachable(action, self.tip_m))
        self.steps += 1
        return self._observation()

    def picture(self) -> np.ndarray:
        """Return what the camera sees, (H, W, 3) uint8 RGB."""
        shown = hidden(self)
        self._data.mocap_pos[self._curtain_row] = self._curtain_place if shown else _AWAY
        self._mujoco.mj_kinematics(self._model, self._data)
        self._renderer.update_scene(self._data, "table")
        return self._renderer.render()

    def close(self) -> None:
        """Give the renderer back."""
        self._renderer.close()

    @property
    def tip_m(self) -> np.ndarray:
        """Where the gripper's tip is, (3,)."""
        return self._data.joint("hand").qpos[:3].copy()

    @property
    def opening(self) -> float:
        """How far the gripper was told to open, 0 to 1."""
        return self._opening

    @property
    def blocks_m(self) -> np.ndarray:
        """Where the blocks' centres are, (3, 3)."""
        return np.array([self._data.body(f"block{number}").xpos for number in range(BLOCKS)])

    def _paint(self) -> None:
        marked, model = self.situation.marked, self._model
        for number in range(BLOCKS):
            recognised = marked and number == self.layout.target
            colour = colours.MARKED_BLOCK if recognised else colours.BLOCK
            model.geom(f"block{number}").rgba[:3] = colour
        goal = model.geom("goal")
        goal.rgba[3] = float(marked)
        goal.pos[:2] = self.layout.goal

    def _lead(self, place: np.ndarray, opening: float) -> None:
        """Lead the hand to a place in equal steps, then let everything settle."""
        data, row = self._data, self._target_row
        self._opening = opening
        data.ctrl[:] = opening * FINGER_OPEN_M
        begin = data.mocap_pos[row].copy()
        for number in range(1, MOVING + 1):
            data.mocap_pos[row] = begin + (place - begin) * number / MOVING
            self._mujoco.mj_step(self._model, data)
        self._mujoco.mj_step(self._model, data, SETTLING)

    def _observation(self) -> Observation:
        return Observation(self.picture(), vector_of(self.tip_m, self._opening))
