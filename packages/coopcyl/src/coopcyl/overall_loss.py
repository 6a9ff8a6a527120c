"""The notes' `overall_loss`: MapAnything's robust losses on factored geometry, and the mask.

Terms and weights are those of its `configs/loss/overall_loss.yaml`, with the points in the
first view's frame weighed by their confidence. Left out are its special cases: the worst 5 % of
pixels count, since the data are simulated, and there are no losses on normals and gradients, whose
neighbouring pixels may belong to two cameras. Terms are means over views, which MapAnything adds.

Nothing in it is in metres; see `coopcyl.losses`. What is measured in metres stands beside it.
"""

import torch
from loom.loop import Losses, Term

from coopcyl.batches import SetBatch
from coopcyl.loss_options import OverallLossOptions
from coopcyl.losses import Confidence, NonAmbiguousMaskLoss, geometry_losses
from coopcyl.models.mapanything import MapAnythingAdapter, found_geometry, true_geometry


def overall_loss(model: MapAnythingAdapter, batch: SetBatch, options: OverallLossOptions) -> Losses:
    """Return the losses of a batch."""
    found = model(batch.views, batch.per_set)
    sets = len(batch.truth.poses)
    shape = (sets, batch.per_set)
    valid = (batch.truth.range_m > 0).unflatten(0, shape)
    covered = batch.views.covered.unflatten(0, shape)
    truth = true_geometry(batch.views, batch.truth.range_m, batch.truth.poses)
    sure = torch.stack([view["conf"] for view in found], dim=1).float()
    confidence = Confidence(sure, options.conf_alpha)
    terms = geometry_losses(found_geometry(found), truth, valid, covered, confidence=confidence)
    known = covered & batch.truth.surface_known.view(*shape, 1, 1)
    mask = NonAmbiguousMaskLoss(options.pos_weight)(
        torch.stack([view["non_ambiguous_mask_logits"] for view in found], dim=1).float(),
        batch.truth.surface.unflatten(0, shape),
        known,
        valid,
    )
    terms["mask"] = Term(mask.value, options.mask)
    return Losses(terms, mask.metrics)
