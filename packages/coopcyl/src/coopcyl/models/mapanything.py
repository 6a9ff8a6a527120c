"""MapAnything on panoramas: the real model where it is installed, behind the same `predict`.

MapAnything (Keetha et al. 2025, arXiv 2509.13414) is not on a package index and pins old versions
of its libraries, so it lives in an environment of its own and is only imported here when somebody
asks for it. It expects one centre per view: it is given the panorama's rays as known directions and
is taught the central targets, direction and distance of each point from the rig's origin. Its
`forward` is called, not `infer`, which would recover pinhole intrinsics that a panorama has not.
But `forward` by itself uses what it is given only by chance, as its training did (rays in 43 % of
the cases); the chances are set to rays always, depths and poses never.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from loom.errors import UserError
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from coopcyl.losses import FactoredGeometry
from coopcyl.models.inputs import ViewInput
from coopcyl.models.options import PATCH, MapAnythingOptions

NORMALISATION = "dinov2"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RAYS_ALWAYS = {
    "overall_prob": 1.0,
    "dropout_prob": 0.0,
    "ray_dirs_prob": 1.0,
    "depth_prob": 0.0,
    "cam_prob": 0.0,
}
OUTPUT_KEYS = (
    "pts3d",
    "pts3d_cam",
    "ray_directions",
    "depth_along_ray",
    "cam_trans",
    "cam_quats",
    "metric_scaling_factor",
    "conf",
    "non_ambiguous_mask",
    "non_ambiguous_mask_logits",
)


class MapAnythingAdapter(nn.Module):
    """A model with MapAnything's `forward`, called with panoramas.

    Args:
        inner: Takes a list of views and returns a list of outputs, both dicts of batches.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, views: ViewInput, per_set: int) -> list[dict[str, Tensor]]:
        """Return the outputs of each position in a set, each with a batch of sets."""
        found = self.inner(as_mapanything(views, per_set))
        missing = [key for key in OUTPUT_KEYS if any(key not in each for each in found)]
        if missing or len(found) != per_set:
            raise UserError(
                f"the model returned {len(found)} views without {', '.join(missing) or 'gaps'}",
                hint="coopcyl knows MapAnything 1.1 with mask, confidence and metric scale",
            )
        return found

    def poses(self, found: Sequence[dict[str, Tensor]], index: int = 0) -> np.ndarray:
        """Return the poses `(v, 4, 4)` of one set from each view to the first one."""
        poses = np.tile(np.eye(4), (len(found), 1, 1))
        for pose, view in zip(poses, found, strict=True):
            quaternion = view["cam_quats"][index].double().cpu().numpy()
            pose[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
            pose[:3, 3] = view["cam_trans"][index].double().cpu().numpy()
        return np.linalg.inv(poses[0]) @ poses


def as_mapanything(views: ViewInput, per_set: int) -> list[dict[str, Any]]:
    """Return views as MapAnything's `forward` takes them: one dict per position in the set.

    Only what the network may see is in it: normalised image and ray directions.
    """
    height, width = views.image.shape[-2:]
    if height % PATCH or width % PATCH:
        raise UserError(
            f"a panorama of {width}x{height} for MapAnything",
            hint=f"both must be multiples of {PATCH}: panorama.width=1008 panorama.height=252",
        )
    mean, deviation = (
        torch.tensor(values, device=views.image.device).view(1, 3, 1, 1)
        for values in (_MEAN, _DEVIATION)
    )
    image = (views.image - mean) / deviation
    rays = views.rays.permute(0, 2, 3, 1)
    sets = len(image) // per_set
    return [
        {
            "img": image[i::per_set],
            "ray_directions_cam": rays[i::per_set],
            "data_norm_type": [NORMALISATION] * sets,
            "is_metric_scale": torch.ones(sets, dtype=torch.bool, device=image.device),
            "true_shape": torch.tensor([[height, width]] * sets, dtype=torch.int32),
        }
        for i in range(per_set)
    ]


def found_geometry(found: Sequence[dict[str, Tensor]]) -> FactoredGeometry:
    """Return outputs as the factored geometry of the losses, `(b, v, ...)`."""

    def joined(key: str) -> Tensor:
        return torch.stack([view[key] for view in found], dim=1).float()

    # Outputs are metric; the losses want lengths of the model's own and the factor apart.
    factor = joined("metric_scaling_factor")[:, 0, 0]

    def own(key: str) -> Tensor:
        values = joined(key)
        return values / factor.view(-1, *[1] * (values.ndim - 1))

    return FactoredGeometry(
        own("pts3d"),
        own("pts3d_cam"),
        own("depth_along_ray"),
        joined("ray_directions"),
        joined("cam_quats"),
        own("cam_trans"),
        factor,
    )


def true_geometry(views: ViewInput, range_m: Tensor, poses: Tensor) -> FactoredGeometry:
    """Return the truth with one centre per view, `(b, v, ...)`.

    Args:
        views: Of b sets of v views.
        range_m: `(b v, h, w)` along each ray, 0 where there is none.
        poses: `(b, v, 4, 4)` from each view to the first.
    """
    sets, per_set = poses.shape[:2]
    rays, origins = (tensor.permute(0, 2, 3, 1) for tensor in (views.rays, views.origins))
    known = (range_m > 0)[..., None]
    own = torch.where(known, origins + range_m[..., None] * rays, 0.0)
    distance = own.norm(dim=-1, keepdim=True)
    directions = torch.where(known, own / distance.clamp_min(1e-6), rays)
    split = own.unflatten(0, (sets, per_set))
    turned = torch.einsum("bvij,bvhwj->bvhwi", poses[..., :3, :3], split)
    quaternions = Rotation.from_matrix(poses[..., :3, :3].flatten(0, 1).cpu().numpy()).as_quat()
    return FactoredGeometry(
        turned + poses[..., None, None, :3, 3],
        split,
        distance.unflatten(0, (sets, per_set)),
        directions.unflatten(0, (sets, per_set)),
        torch.as_tensor(quaternions, dtype=own.dtype, device=own.device).view(sets, per_set, 4),
        poses[..., :3, 3],
        torch.ones(sets, dtype=own.dtype, device=own.device),
    )


def load_mapanything(options: MapAnythingOptions) -> MapAnythingAdapter:
    """Import MapAnything and read its weights.

    Raises:
        UserError: It is not installed, has no such weights, or is of another version.
    """
    try:
        module = importlib.import_module("mapanything.models")
    except ImportError as error:
        raise UserError(
            f"model=mapanything needs MapAnything, which cannot be imported: {error}",
            hint="install it from its repository into an environment of its own, then coopcyl "
            "beside it; model=cylnet needs neither",
        ) from error
    try:
        inner = module.MapAnything.from_pretrained(options.weights)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the weights {options.weights} cannot be read: {error}",
            hint="give a folder or a name with model.weights; facebook/map-anything-apache has "
            "the licence Apache-2.0, facebook/map-anything CC-BY-NC-4.0",
        ) from error
    chances = getattr(inner, "geometric_input_config", None)
    if not isinstance(chances, dict) or not chances.keys() >= _RAYS_ALWAYS.keys():
        raise UserError(
            "this MapAnything has no geometric_input_config that could be told to use rays",
            hint="coopcyl knows MapAnything 1.1",
        )
    chances.update(_RAYS_ALWAYS)
    return MapAnythingAdapter(inner)
