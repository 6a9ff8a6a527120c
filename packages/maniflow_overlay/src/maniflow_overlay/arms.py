"""The arms of the experiment: on which picture the path is seen, and how it gets there.

    mode              current frames            the episode's first frame
    none              as they are               not seen
    initial           as they are               with its path
    current           each with its path        not seen
    initial_current   each with its path        with its path

`overlay` draws the path over the picture (approach A), `concat6` puts it on black into three more
channels (approach B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["none", "initial", "current", "initial_current"]
Fuse = Literal["overlay", "concat6"]


@dataclass(frozen=True)
class Arm:
    """What a policy gets to see."""

    mode: Mode
    fuse: Fuse = "overlay"

    @property
    def sees_initial(self) -> bool:
        """Whether the episode's first frame is an input."""
        return self.mode in ("initial", "initial_current")

    @property
    def draws_current(self) -> bool:
        """Whether the current frames carry a path."""
        return self.mode in ("current", "initial_current")

    @property
    def channels(self) -> int:
        """Channels of every picture; without any path there are three for either way to fuse."""
        return 6 if self.fuse == "concat6" and self.mode != "none" else 3


def as_channels(pictures: np.ndarray, channels: int) -> np.ndarray:
    """Put the pictures of one view into channels; a path picture that is not there is black.

    Args:
        pictures: (..., P, H, W, 3): the frame, and with six channels its path on black.
        channels: 3 or 6.

    Returns:
        (..., H, W, channels).
    """
    count = pictures.shape[-4]
    if 3 * count > channels:
        raise ValueError(f"{count} pictures for {channels} channels")
    merged = np.concatenate([pictures[..., k, :, :, :] for k in range(count)], axis=-1)
    if merged.shape[-1] == channels:
        return merged
    widths = [(0, 0)] * (merged.ndim - 1) + [(0, channels - merged.shape[-1])]
    return np.pad(merged, widths)
