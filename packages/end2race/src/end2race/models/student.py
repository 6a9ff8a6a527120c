"""The camera student: image features lifted to the teacher's grid, then the same kind of policy."""

from collections.abc import Collection
from typing import Literal

import torch
from loom.errors import UserError
from torch import Tensor, nn

from end2race.models.driving_model import Answer, DrivingModel
from end2race.models.lift_splat import CameraCalibration, IdentityViewTransform, LiftSplat
from end2race.models.presets import Preset

ViewTransform = Literal["lift_splat", "identity"]


class CameraBEVStudent(DrivingModel):
    """Drives by camera.

    Args:
        preset: Sizes.
        calibration: The camera; images have its size.
        view_transform: How image features reach the grid; `identity` is the baseline without
            geometry.
    """

    def __init__(
        self,
        preset: Preset,
        calibration: CameraCalibration,
        view_transform: ViewTransform = "lift_splat",
    ) -> None:
        camera = preset.camera
        super().__init__(camera.channels, preset)
        self.calibration = calibration
        self.image_size = (calibration.height, calibration.width)
        if calibration.height % camera.stride_px or calibration.width % camera.stride_px:
            raise UserError(
                f"images of {calibration.width} x {calibration.height} are not a multiple of "
                f"{camera.stride_px} pixels",
                hint="resize the recording, or take another preset",
            )
        self.image_encoder = _image_encoder(camera.widths)
        if view_transform == "identity":
            self.view: nn.Module = IdentityViewTransform(
                preset.grid, in_channels=camera.widths[-1], channels=camera.channels
            )
        else:
            self.view = LiftSplat(
                calibration,
                preset.grid,
                camera.bins,
                stride_px=camera.stride_px,
                in_channels=camera.widths[-1],
                channels=camera.channels,
            )

    def bird_view(self, images: Tensor, *, impl: str = "auto") -> Tensor:
        """Return the view [n, channels, rows, columns] of uint8 images [n, h, w, 3]."""
        if tuple(images.shape[1:]) != (*self.image_size, 3):
            height, width = self.image_size
            raise UserError(
                f"images of {images.shape[2]} x {images.shape[1]}; the camera has {width} x "
                f"{height}",
                hint="the student sees only through the camera that it was calibrated for",
            )
        pixels = images.permute(0, 3, 1, 2).to(torch.float32).sub_(127.5).div_(64.0)
        return self.view(self.image_encoder(pixels), impl=impl)

    def encode(self, images: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
        """Return feature map [n, c, h, w] and vector [n, D] of uint8 images [n, h, w, 3]."""
        return self.backbone(self.bird_view(images, impl=impl))

    def forward(
        self,
        images: Tensor,
        speed: Tensor,
        steering_input: Tensor,
        hidden: Tensor | None = None,
        return_aux: bool | Collection[str] = False,
        *,
        impl: str = "auto",
    ) -> Answer:
        """Drive sequences of uint8 images [B, T, h, w, 3]; see `LiDARBEVTeacher.forward`."""
        encoded = self.encode(images.flatten(0, 1), impl=impl)
        return self.drive(encoded, speed, steering_input, hidden, return_aux)


def _image_encoder(widths: tuple[int, ...]) -> nn.Sequential:
    """Halve the image once per width, then look around once more."""
    layers: list[nn.Module] = []
    for before, width in zip((3, *widths[:-1]), widths, strict=True):
        layers += [
            nn.Conv2d(before, width, 3, 2, padding=1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
        ]
    last = widths[-1]
    return nn.Sequential(*layers, nn.Conv2d(last, last, 3, padding=1), nn.ReLU())
