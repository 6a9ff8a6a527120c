"""The LiDAR teacher: pillars, a bird's-eye view, a recurrent policy."""

from collections.abc import Collection

from torch import Tensor

from end2race.models.driving_model import Answer, DrivingModel
from end2race.models.pillars import PillarEncoder
from end2race.models.presets import Preset


class LiDARBEVTeacher(DrivingModel):
    """Drives by LiDAR."""

    def __init__(self, preset: Preset) -> None:
        super().__init__(preset.pillar_channels, preset)
        self.pillars = PillarEncoder(
            preset.grid, preset.pillar_channels, batch_norm=preset.batch_norm
        )

    def encode(
        self, points: Tensor, point_frame: Tensor, frames: int, *, impl: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        """Return the feature map [frames, c, h, w] and the vector [frames, D] of each frame."""
        return self.backbone(self.pillars(points, point_frame, frames, impl=impl))

    def forward(
        self,
        points: Tensor,
        point_frame: Tensor,
        batch: int,
        time: int,
        speed: Tensor,
        steering_input: Tensor,
        hidden: Tensor | None = None,
        return_aux: bool | Collection[str] = False,
        *,
        impl: str = "auto",
    ) -> Answer:
        """Drive `batch` sequences of `time` frames.

        Args:
            points: x y z (ego frame, m), intensity; of all frames, [P, 4].
            point_frame: The frame b * time + t of each point, [P] int64.
            batch: B.
            time: T.
            speed: m/s, NaN where not known, [B, T, 1].
            steering_input: The wheel angle one frame earlier in degrees, NaN where not known,
                [B, T, 1].
            hidden: State to go on from, [1, B, H]; zero if None.
            return_aux: Names of the intermediate results to return (see `AUX_FIELDS`); True: all.
            impl: auto, torch or cpu.

        Returns:
            actions [B, T, 2] (wheel angle in degrees, target speed in m/s), the last state
            [1, B, H], and what was asked for: bev_vec_seq [B, T, D], bev_feat_seq
            [B, T, C, H, W], gru_out [B, T, H].
        """
        encoded = self.encode(points, point_frame, batch * time, impl=impl)
        return self.drive(encoded, speed, steering_input, hidden, return_aux)
