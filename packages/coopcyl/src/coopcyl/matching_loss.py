"""What the network is taught: ranges, matches, who sees what, and the mask. Never a pose.

The pose comes out of a solver that is right whenever ranges and matches are, so those are taught.
Each loss is the mean over a set of its own mean, so that the loss of a batch does not depend on how
it is split over processes.
"""

import math
from itertools import combinations
from typing import NamedTuple

import torch
from loom.loop import Losses, Term
from torch import Tensor
from torch.nn import functional

from coopcyl.batches import SetBatch
from coopcyl.loss_options import MatchingLossOptions
from coopcyl.losses import NonAmbiguousMaskLoss, masked_mean
from coopcyl.models.cylnet import STRIDE, CylNet, TokenMaps

_NEAR_M, _NEAR_SHARE = 0.3, 0.07
_LEAST_CHANCE = 1e-9
_NOWHERE_M = 1e4  # where points without a range are put, so that they are near no other
_FAR_SPREADS = 6.0  # of a partner's distance; beyond, exp gives numbers too small to be quick
_SECOND_RANGE_WEIGHT = 2.0  # of the expectation's distance beside the cross-entropy


class TokenTruth(NamedTuple):
    """The truth on the token grid, `t` tokens per view.

    Attributes:
        range_m: `(n, t)`, 0 where there is none.
        points: `(n, t, 3)` in the frame of the first view of the set.
        keys: `(n, t)`.
    """

    range_m: Tensor
    points: Tensor
    keys: Tensor


def token_truth(batch: SetBatch) -> TokenTruth:
    """Return the truth at the tokens' centre pixels: an average would lie on no surface."""
    middle = slice(STRIDE // 2, None, STRIDE)

    def at_tokens(tensor: Tensor) -> Tensor:
        return tensor[..., middle, middle].flatten(-2)

    range_m = at_tokens(batch.truth.range_m)
    own = at_tokens(batch.views.origins) + range_m[:, None] * at_tokens(batch.views.rays)
    poses = batch.truth.poses.flatten(0, 1)
    points = own.transpose(1, 2) @ poses[:, :3, :3].transpose(1, 2) + poses[:, None, :3, 3]
    return TokenTruth(range_m, points, at_tokens(batch.keys))


def matching_losses(model: CylNet, batch: SetBatch, options: MatchingLossOptions) -> Losses:
    """Return the losses of a batch."""
    maps = model(batch.views, batch.per_set)
    truth = token_truth(batch)
    sets = [
        slice(first, first + batch.per_set) for first in range(0, len(truth.keys), batch.per_set)
    ]
    mask_loss = NonAmbiguousMaskLoss(options.pos_weight)
    rows, shown = [], []
    for views in sets:
        pairs = [
            pair_losses(model, maps, truth, i, j, options)
            for i, j in combinations(range(views.start, views.stop), 2)
        ]
        match, covisible = (torch.stack(part).mean() for part in zip(*pairs, strict=True))
        known = batch.truth.surface_known[views, None, None] & batch.views.covered[views]
        mask = mask_loss(
            maps.pixel_surface_logits[views],
            batch.truth.surface[views],
            known,
            batch.truth.range_m[views] > 0,
        )
        shown.append(mask.metrics)
        rows.append(
            torch.stack(
                [*range_losses(model, maps, batch, truth, views), match, covisible, mask.value]
            )
        )
    names = ("range", "pixels", "scale", "match", "covisible", "mask")
    values = dict(zip(names, torch.stack(rows).mean(dim=0), strict=True))
    metrics = {key: torch.stack([each[key] for each in shown]).mean() for key in shown[0]}
    weights = {name: getattr(options, name) for name in names}
    return Losses(
        {name: Term(value, weights[name]) for name, value in values.items()},
        metrics | {"match/temperature": model.temperature.detach()},
    )


def range_losses(
    model: CylNet, maps: TokenMaps, batch: SetBatch, truth: TokenTruth, views: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of one set's ranges: of the tokens, of the pixels, of the scale."""
    low, high = (math.exp(model.log_bins[i].item()) for i in (0, -1))
    range_m = truth.range_m[views]
    valid = (range_m > low) & (range_m < high)
    wanted = range_m.clamp(low, high).log()[valid]
    logits = maps.bin_logits[views].flatten(1, 2)[valid]
    expected = (logits.softmax(dim=-1) * model.log_bins).sum(-1)
    token = two_hot_loss(logits, wanted, model.log_bins).sum() / max(1, wanted.numel())
    distance = (expected - wanted).abs().sum() / max(1, wanted.numel())
    pixel_m = batch.truth.range_m[views]
    pixel = (maps.pixel_log_range[views] - pixel_m.clamp(low, high).log()).abs()
    bias = maps.log_range[views].flatten(1).detach() - maps.log_scale[views, None].detach()
    left = torch.where(valid, range_m.clamp(low, high).log() - bias, 0.0).sum(dim=1)
    left = left / valid.sum(dim=1).clamp_min(1)
    return (
        token + _SECOND_RANGE_WEIGHT * distance,
        masked_mean(pixel, (pixel_m > low) & (pixel_m < high)),
        (maps.log_scale[views] - left).abs().mean(),
    )


def two_hot_loss(logits: Tensor, wanted: Tensor, bins: Tensor) -> Tensor:
    """Return the cross-entropy with a target that lies between two bins, `(k,)`.

    Args:
        logits: `(k, bins)`.
        wanted: `(k,)` within the bins.
        bins: `(bins,)` evenly spaced.
    """
    place = (wanted - bins[0]) / (bins[1] - bins[0])
    lower = place.floor().long().clamp(0, len(bins) - 2)
    share = (place - lower).clamp(0, 1)
    log_chance = logits.log_softmax(dim=-1)
    below = log_chance.gather(1, lower[:, None])[:, 0]
    above = log_chance.gather(1, lower[:, None] + 1)[:, 0]
    return -((1 - share) * below + share * above)


def pair_losses(
    model: CylNet, maps: TokenMaps, truth: TokenTruth, i: int, j: int, options: MatchingLossOptions
) -> tuple[Tensor, Tensor]:
    """Return the losses of two views' matches and of who sees what."""
    points = [
        torch.where(
            ((truth.range_m[k] > 0) & (truth.range_m[k] < options.match_range_m))[:, None],
            truth.points[k],
            away,
        )
        for k, away in ((i, _NOWHERE_M), (j, -_NOWHERE_M))
    ]
    distance = torch.cdist(*points)
    match, covisible = [], []
    for k, other, apart in ((i, j, distance), (j, i, distance.T)):
        near_m = _NEAR_M + _NEAR_SHARE * truth.range_m[k]
        nearest = apart.amin(dim=1)
        seen = nearest < near_m
        keys = torch.where(seen, truth.keys[k], -1.0)
        asked = keys.topk(min(options.queries, len(keys))).indices
        similarity = model.similarity(maps.descriptors[k][asked], maps.descriptors[other])
        target = partner_chances(apart[asked], nearest[asked], near_m[asked])
        cross_entropy = -(target * similarity.log_softmax(dim=-1)).sum(-1)
        match.append(masked_mean(cross_entropy, seen[asked]))
        decided = (truth.range_m[k] > 0) & (seen | (nearest > 2 * near_m))
        logits = maps.covisible_logits[k].flatten()
        covisible.append(
            masked_mean(
                functional.binary_cross_entropy_with_logits(logits, seen.float(), reduction="none"),
                decided,
            )
        )
    return torch.stack(match).mean(), torch.stack(covisible).mean()


def partner_chances(apart: Tensor, nearest: Tensor, near_m: Tensor) -> Tensor:
    """Return how likely each token of the other view is the partner: soft round the nearest.

    Args:
        apart: `(q, t)` distances of points, metres.
        nearest: `(q,)` the smallest of each row; rows without one give zeros.
        near_m: `(q,)` how far partners may be apart.
    """
    spread = (apart - nearest[:, None]) / (0.5 * near_m[:, None])
    weight = torch.exp(-0.5 * spread.clamp(max=_FAR_SPREADS).square())
    weight = torch.where(apart < 2 * near_m[:, None], weight, 0.0)
    return weight / weight.sum(dim=-1, keepdim=True).clamp_min(_LEAST_CHANCE)
