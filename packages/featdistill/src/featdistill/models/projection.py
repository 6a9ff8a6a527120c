"""Gaussians on the image plane: the perspective projection of 3D Gaussian Splatting in torch.

A gaussian N(mu, Sigma), Sigma = R S S^T R^T, is seen as N(mu', J W Sigma W^T J^T + 0.3 I), J being
the Jacobian of the pinhole projection at the centre (Zwicker et al. 2001, EWA splatting; Kerbl et
al. 2023, section 4). Conventions of the reference rasteriser: centres nearer than 0.2 are dropped,
J is taken inside 1.3 times the field of view, 0.3 square pixels of blur stand for the pixel filter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from featdistill.cameras import Cameras
from featdistill.gaussians import Gaussians, rotation_matrices

NEAR = 0.2
BLUR_PX2 = 0.3
FIELD_OF_VIEW_MARGIN = 1.3
ALPHA_MIN = 1.0 / 255.0


class View(NamedTuple):
    """One pinhole camera in the form that rasterisation needs."""

    view_from_world: Tensor  # [4, 4] OpenCV: x right, y down, z forward
    center: Tensor  # [3] camera centre in the world
    width: int
    height: int
    focal_px: float


class Splats(NamedTuple):
    """Gaussians as one camera sees them; rows of invisible ones are to be ignored."""

    means_px: Tensor  # [n, 2] pixel coordinates, the centre of pixel 0 is at 0.5
    conics: Tensor  # [n, 3] inverse covariance (xx, xy, yy) in 1/px^2
    depths: Tensor  # [n] distance along the optical axis
    extents_px: Tensor  # [n, 2] half width and height of the region with alpha >= 1/255
    visible: Tensor  # [n] bool


def view_of(camera: Cameras) -> View:
    """Return the single camera of `camera` as a `View`.

    Raises:
        ValueError: `camera` holds no or several views.
    """
    if len(camera) != 1:
        raise ValueError(f"one view is rendered at a time, got {len(camera)}")
    center = camera.poses_world_from_camera[0, :3, 3]
    return View(camera.view_from_world()[0], center, camera.width, camera.height, camera.focal_px)


def project(gaussians: Gaussians, view: View) -> Splats:
    """Project gaussians into a pinhole camera that looks along +z with its centre in the middle."""
    rotation = view.view_from_world[:3, :3]
    centers = gaussians.means @ rotation.T + view.view_from_world[:3, 3]
    depths = centers[:, 2]
    in_front = depths > NEAR
    z = torch.where(in_front, depths, torch.ones_like(depths))
    size = centers.new_tensor([view.width, view.height])
    means_px = view.focal_px * centers[:, :2] / z[:, None] + 0.5 * size

    axes = rotation @ rotation_matrices(gaussians.rotations) * gaussians.scales[:, None, :]
    screen_axes = _projection_jacobian(centers[:, :2], z, size, view.focal_px) @ axes
    covariance = screen_axes @ screen_axes.transpose(1, 2)
    xx = covariance[:, 0, 0] + BLUR_PX2
    yy = covariance[:, 1, 1] + BLUR_PX2
    xy = covariance[:, 0, 1]
    determinant = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], dim=1) / determinant[:, None]

    # alpha >= 1/255 where the Mahalanobis distance^2 <= 2 ln(255 opacity).
    reach = 2 * torch.log((gaussians.opacities.detach() / ALPHA_MIN).clamp_min(1.0))
    extents = torch.sqrt(reach[:, None] * torch.stack([xx, yy], dim=1).detach())
    on_screen = ((means_px + extents > 0) & (means_px - extents < size)).all(dim=1)
    return Splats(means_px, conics, depths, extents, in_front & (reach > 0) & on_screen)


def _projection_jacobian(xy: Tensor, z: Tensor, size: Tensor, focal_px: float) -> Tensor:
    limit = FIELD_OF_VIEW_MARGIN * 0.5 * size / focal_px
    slope = torch.minimum(torch.maximum(xy / z[:, None], -limit), limit)
    scale = focal_px / z
    zero = torch.zeros_like(z)
    rows = [scale, zero, -scale * slope[:, 0], zero, scale, -scale * slope[:, 1]]
    return torch.stack(rows, dim=1).reshape(-1, 2, 3)
