"""What the viewer shows: student, teacher and their difference from any place of an orbit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loom.device import choose_device
from loom.evaluation.images import psnr_db

from featdistill.cameras import Cameras
from featdistill.data.rgba import BACKGROUNDS, composite
from featdistill.figures import error_map
from featdistill.models.raster import render
from featdistill.models.student import render_image
from featdistill.orbit import Orbit, orbit_camera, orbit_of
from featdistill.restore import restore_student
from featdistill.teacher_views import teacher_of


class Frame(NamedTuple):
    """Student, teacher and difference side by side, and the student's score on this view."""

    pixels: np.ndarray
    """[h, 3 w, 3] uint8."""
    psnr_db: float


class Viewer:
    """A student and its teacher, ready to be looked at."""

    def __init__(self, run: Path, device: str = "auto") -> None:
        """Read both from a run; the student is drawn on a device, the teacher on the CPU.

        Raises:
            UserError: There is no intact checkpoint, neither the teacher nor its copy is there, or
                no such device.
        """
        chosen = choose_device(device)
        restored = restore_student(run)
        self.teacher = teacher_of(restored.config.data, restored.run)
        self.cameras = self.teacher.evaluation
        self.target = restored.student.box.mean(dim=0)
        self.student, self.step = restored.student.to(chosen), restored.step
        self.start = orbit_of(self.cameras.centres[0], self.target)
        half = max(1, torch.get_num_threads() // 2)
        self._pool = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(half,))

    def frame(self, orbit: Orbit, width: int, background: str = "white") -> Frame:
        """Render one view.

        Args:
            orbit: Where the camera is.
            width: Of each picture, in pixels.
            background: "white" or "black".
        """
        camera = orbit_camera(orbit, self.target, self.cameras, width)
        over = BACKGROUNDS[background]
        ours = self._pool.submit(self._student, camera)
        theirs = self._pool.submit(self._teacher, camera)
        pictures = composite(ours.result(), over), composite(theirs.result(), over)
        return Frame(np.concatenate([*pictures, error_map(*pictures)], axis=1), psnr_db(*pictures))

    def _student(self, camera: Cameras) -> np.ndarray:
        return render_image(self.student, camera)[0].cpu().numpy()

    @torch.no_grad()
    def _teacher(self, camera: Cameras) -> np.ndarray:
        shown = render(self.teacher.gaussians, camera)
        return torch.cat([shown.rgb, 1.0 - shown.transmittance[..., None]], dim=-1).numpy()
