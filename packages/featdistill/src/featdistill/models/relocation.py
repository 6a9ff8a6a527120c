"""Move gaussians that nobody sees to where they are needed, at a constant number of gaussians.

Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo", section 3.4: a dead
gaussian is placed on a living one, and the N gaussians that now share the place get the opacity and
size with which they render almost as the one did before (equation 9):

    o_new = 1 - (1 - o)^(1/N),
    Sigma_new = o^2 (sum_{i=1..N} sum_{k=0..i-1} C(i-1, k) (-1)^k o_new^(k+1) / sqrt(k+1))^-2 Sigma.

As no tensor changes its shape, a run can be resumed at any step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featdistill.models.gaussian_model import GROUPS, GaussianModel

MAX_SHARE = 20  # gaussians at one place; beyond, the alternating sum loses its digits
SMALLEST_OPACITY = 0.005


def shared_opacity_and_scale(opacity: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return opacity and scale factor for each of `count` gaussians that replace one.

    Args:
        opacity: Of the one, [n] in (0, 1).
        count: How many take its place, [n] int64 from 1 to `MAX_SHARE`.
    """
    exact = opacity.double()
    shared = 1 - (1 - exact) ** (1 / count)
    total = torch.zeros_like(exact)
    for i in range(1, int(count.max()) + 1):
        inner = sum(
            math.comb(i - 1, k) * (-1) ** k * shared ** (k + 1) / math.sqrt(k + 1) for k in range(i)
        )
        total += torch.where(count >= i, inner, 0.0)
    return shared.to(opacity), (exact / total).to(opacity)


@torch.no_grad()
def relocate(
    model: GaussianModel, optimizer: torch.optim.Optimizer, dead: Tensor, onto: Tensor
) -> None:
    """Place gaussians `dead` [k] onto the living ones `onto` [k]; forget their moments.

    Args:
        model: Changed in place.
        optimizer: Its state for the rows concerned becomes zero.
        dead: Rows that move, each once.
        onto: The row that each moves to; never a dead one.
    """
    places, count = onto.unique(return_counts=True)
    count = (count + 1).clamp_max(MAX_SHARE)
    opacity, factor = shared_opacity_and_scale(torch.sigmoid(model.opacity_logits[places]), count)
    model.opacity_logits[places] = torch.logit(opacity.clamp(SMALLEST_OPACITY, 1 - 1e-6))
    model.log_scales[places] += factor.log()[:, None]
    changed = torch.cat([places, dead])
    for name in GROUPS:
        parameter = getattr(model, name)
        parameter[dead] = parameter[onto]
        for key, value in optimizer.state.get(parameter, {}).items():
            if key != "step":
                value[changed] = 0
