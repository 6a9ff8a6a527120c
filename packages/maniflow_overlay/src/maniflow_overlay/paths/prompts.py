"""What each model is asked, and how the picture is shown to it.

HAMSTER and PEEK were tuned on their exact wording, so the texts are theirs to the letter. PEEK sees
the central square of the picture, scaled to 384; its coordinates refer to that square and are
mapped back (at 320x240: x = (x_crop * 240 + 40) / 320).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import cv2
import numpy as np
from loom.errors import UserError

from maniflow_overlay.paths.grammar import Dialect

# The six single-arm tasks of the notes, in the words of RoboTwin's instructions.
INSTRUCTIONS = {
    "beat_block_hammer": "Pick up the hammer and beat the block",
    "click_bell": "click the bell's top center on the table",
    "move_can_pot": "pick up the can and move it to beside the pot",
    "open_microwave": "open the microwave",
    "place_object_stand": "place the object on the stand",
    "turn_switch": "click the switch",
}

_HAMSTER = (
    "\nIn the image, please execute the command described in <quest>{quest}</quest>.\n"
    "Provide a sequence of points denoting the trajectory of a robot gripper to achieve the goal.\n"
    "Format your answer as a list of tuples enclosed by <ans> and </ans> tags. For example:\n"
    "<ans>[(0.25, 0.32), (0.32, 0.17), (0.13, 0.24), <action>Open Gripper</action>, "
    "(0.74, 0.21), <action>Close Gripper</action>, ...]</ans>\n"
    "The tuple denotes point x and y location of the end effector in the image. "
    "The action tags indicate gripper actions.\n"
    "Coordinates should be floats between 0 and 1, representing relative positions.\n"
    "Remember to provide points between <ans> and </ans> tags and think step by step."
)
_PEEK = (
    "\nIn the image, please execute the command described in <quest>{quest}</quest>.\n"
    "Provide a sequence of points denoting the trajectory of a robot gripper and a set of points "
    "denoting the areas the robot must see to achieve the goal.\n"
    "Format your answer as a list of tuples enclosed by <ans> and </ans> tags. For example:\n"
    "TRAJECTORY: <ans>[(0.25, 0.32), (0.32, 0.17), (0.13, 0.24), (0.74, 0.21), ...]</ans> "
    "MASK: <ans>[(0.25, 0.32), (0.32, 0.17), (0.13, 0.24), (0.74, 0.21), ...]</ans>\n"
    "The tuple denotes point x and y location of the end effector of the gripper in the image.\n"
    "The coordinates should be integers ranging between 0.0 and 1.0, indicating the relative "
    "locations of the points in the image.\n"
)
_QWEN = (
    "In the image, a robot gripper shall: {quest}.\n"
    "Give the trajectory of the gripper as a list of points [x, y] in relative coordinates from 0 "
    "to 1000, in order, and <action>Open Gripper</action> or <action>Close Gripper</action> after "
    "the point where the gripper does that. Answer with the list alone, between <ans> and </ans>."
)


@dataclass(frozen=True)
class Asking:
    """How one model is asked.

    Attributes:
        dialect: Who answers.
        model: The name that the server knows it by.
        template: The question, with `{quest}` in it.
        max_tokens: Of the first attempt.
        square: Side in pixels to which the central square is scaled; None shows the whole picture.
        temperature: Of the first attempt.
        top_p: Always.
        jpeg_quality: Of the picture as it is sent.
    """

    dialect: Dialect
    model: str
    template: str
    max_tokens: int
    square: int | None = None
    temperature: float = 0.0
    top_p: float = 0.95
    jpeg_quality: int = 95

    def question(self, task: str, instructions: dict[str, str]) -> str:
        """Return the question for a task.

        Raises:
            UserError: There is no instruction for the task.
        """
        if task not in instructions:
            raise UserError(
                f"no instruction for the task {task}",
                hint=f'give one with --instruction "{task}=what to do"',
            )
        return self.template.replace("{quest}", instructions[task])

    def digest(self, question: str) -> str:
        """Return a hash of everything that an answer depends on beside the picture."""
        sampling = [self.max_tokens, self.temperature, self.top_p]
        facts = [self.dialect, self.model, question, self.square, self.jpeg_quality, sampling]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def shown_jpeg(self, image_bgr: np.ndarray) -> bytes:
        """Encode a (H, W, 3) uint8 BGR picture as the model is to see it."""
        if self.square is not None:
            height, width = image_bgr.shape[:2]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image_bgr = image_bgr[top : top + side, left : left + side]
            size = (self.square, self.square)
            image_bgr = cv2.resize(image_bgr, size, interpolation=cv2.INTER_LANCZOS4)
        quality = [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality]
        return cv2.imencode(".jpg", image_bgr, quality)[1].tobytes()

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the picture as the model sees it."""
        return (self.square, self.square) if self.square else (width, height)


def from_central_square(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Map relative coordinates of a picture's central square to those of the picture, (n, 2)."""
    size = np.array([width, height], dtype=np.float64)
    side = min(width, height)
    corner = (size - side) // 2
    return (points * side + corner) / size


def asking(dialect: Dialect, model: str, max_tokens: int | None = None) -> Asking:
    """Return how a model of this dialect is asked."""
    if dialect is Dialect.PEEK:
        return Asking(dialect, model, _PEEK, max_tokens or 1024, square=384)
    if dialect is Dialect.QWEN:
        return Asking(dialect, model, _QWEN, max_tokens or 1024)
    return Asking(dialect, model, _HAMSTER, max_tokens or 512)
