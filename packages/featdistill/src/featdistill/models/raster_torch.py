"""The readable twin of the rasteriser: projection, colours and front-to-back blending in torch.

Kerbl et al. 2023, equation 3: C = sum_i c_i a_i T_i with T_i = prod_{j<i} (1 - a_j), gaussians in
order of depth, a_i = min(0.99, opacity_i exp(-d^T conic_i d / 2)). An a_i below 1/255 is skipped,
and a pixel is finished before the gaussian that would leave less than 1e-4 of transmittance. Works
in any float type; autograd gives the gradients that the native kernel is tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featdistill.gaussians import Gaussians
from featdistill.models.projection import ALPHA_MIN, Splats, View, project
from featdistill.models.spherical_harmonics import sh_colors

ALPHA_MAX = 0.99
TRANSMITTANCE_MIN = 1e-4
TILE_PX = 16


def shade(gaussians: Gaussians, view: View, channels: Tensor | None) -> tuple[Splats, Tensor]:
    """Return one view's splats and what they blend [n, 4 + C]: rgb, depth, channels."""
    splats = project(gaussians, view)
    directions = torch.nn.functional.normalize(gaussians.means - view.center, dim=1)
    parts = [sh_colors(gaussians.sh, directions), splats.depths[:, None]]
    if channels is not None:
        parts.append(channels)
    return splats, torch.cat(parts, dim=1)


def render_torch(
    gaussians: Gaussians, view: View, channels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Blend a whole image, tile by tile.

    Returns:
        Blended rgb, depth and channels [h, w, 4 + C], and the transmittance [h, w].
    """
    splats, features = shade(gaussians, view, channels)
    opacities = gaussians.opacities
    blended = features.new_zeros(view.height, view.width, features.shape[1])
    transmittance = features.new_ones(view.height, view.width)
    near_to_far = torch.sort(splats.depths.detach(), stable=True).indices
    near_to_far = near_to_far[splats.visible[near_to_far]]
    low = (splats.means_px - splats.extents_px).detach()[near_to_far]
    high = (splats.means_px + splats.extents_px).detach()[near_to_far]
    for top in range(0, view.height, TILE_PX):
        for left in range(0, view.width, TILE_PX):
            bottom, right = min(top + TILE_PX, view.height), min(left + TILE_PX, view.width)
            corner, opposite = low.new_tensor([left, top]), low.new_tensor([right, bottom])
            inside = near_to_far[((high > corner) & (low < opposite)).all(dim=1)]
            if not len(inside):
                continue
            pixels = torch.cartesian_prod(torch.arange(top, bottom), torch.arange(left, right))
            color, rest = blend(splats, opacities, features, inside, pixels.flip(1))
            shape = (bottom - top, right - left)
            blended[top:bottom, left:right] = color.reshape(*shape, -1)
            transmittance[top:bottom, left:right] = rest.reshape(shape)
    return blended, transmittance


def blend(
    splats: Splats, opacities: Tensor, features: Tensor, inside: Tensor, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Blend the splats `inside` [k] (indices, near to far) at integer pixels [p, 2] (x, y).

    Returns:
        Blended features [p, C] and transmittance [p].
    """
    offset = pixels.to(features) + 0.5 - splats.means_px[inside][:, None]  # (k, p, 2)
    dx, dy = offset.unbind(-1)
    xx, xy, yy = splats.conics[inside].unbind(1)
    power = -0.5 * (xx[:, None] * dx * dx + yy[:, None] * dy * dy) - xy[:, None] * dx * dy
    alpha = (opacities[inside][:, None] * torch.exp(power)).clamp_max(ALPHA_MAX)
    alpha = torch.where(alpha < ALPHA_MIN, 0.0, alpha)
    kept = torch.cumprod(1 - alpha, dim=0) >= TRANSMITTANCE_MIN
    alpha = torch.where(kept, alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=0)  # (k, p)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    return (alpha * before).T @ features[inside], after[-1]


def render_pixels_torch(
    gaussians: Gaussians, view: View, pixels: Tensor, channels: Tensor
) -> tuple[Tensor, Tensor]:
    """Blend the channels [n, C] at integer pixels [r, 2] (x, y).

    Returns:
        Blended channels [r, C] and transmittance [r].
    """
    splats = project(gaussians, view)
    near_to_far = torch.sort(splats.depths, stable=True).indices
    near_to_far = near_to_far[splats.visible[near_to_far]]
    blended, transmittance = channels.new_zeros(len(pixels), channels.shape[1]), []
    for index, pixel in enumerate(pixels):
        offset = (pixel + 0.5 - splats.means_px[near_to_far]).abs()
        inside = near_to_far[(offset <= splats.extents_px[near_to_far]).all(dim=1)]
        if not len(inside):
            transmittance.append(channels.new_ones(()))
            continue
        color, rest = blend(splats, gaussians.opacities, channels, inside, pixel[None])
        blended[index] = color[0]
        transmittance.append(rest[0])
    return blended, torch.stack(transmittance) if transmittance else channels.new_ones(0)
