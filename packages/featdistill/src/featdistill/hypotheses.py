"""The corrections that a diagnosis tries, and how much of the error each explains.

Pictures are float tensors [n, 3, h, w] in [0, 1]. A correction maps the renders to what they would
be without the fault; faults of compositing are instead applied to the references, since a soft edge
that was composed wrongly cannot be recovered from the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_CLEARLY = 0.08  # distance of a colour from the background that shows something
_HARDLY = 0.03  # distance from the background that shows nothing
_SCALES = np.geomspace(0.5, 2.0, 33)
_SEARCH_FRAMES = 12


class Trial(NamedTuple):
    """One hypothesis and what it explains."""

    kind: str
    name: str
    statement: str
    psnr_db: float
    gain_db: float
    explained: float  # share of the squared error that the correction removes; negative: it adds
    corrected: Tensor | None = None


class CutOff(NamedTuple):
    """What is missing from the renders at the rim of the object."""

    trial: Trial
    is_a_cut: bool


def squared_error(a: Tensor, b: Tensor) -> float:
    """Return the mean squared difference."""
    return float((a - b).square().mean(dtype=torch.float64))


def _trial(
    kind: str, name: str, statement: str, before: float, after: float, corrected: Tensor | None
) -> Trial:
    # Beyond 60 dB there is nothing left to explain.
    before, after = max(before, 1e-6), max(after, 1e-6)
    gain = 10 * math.log10(before / after)
    return Trial(
        kind, name, statement, -10 * math.log10(after), gain, 1 - after / before, corrected
    )


def corrections(shown: Tensor, wanted: Tensor) -> Iterator[Trial]:
    """Try every correction on the renders."""
    before = squared_error(shown, wanted)

    def trial(kind: str, name: str, statement: str, corrected: Tensor) -> Trial:
        after = squared_error(corrected, wanted)
        return _trial(kind, name, statement, before, after, corrected)

    for name, axes in (
        ("flipped vertically", [2]),
        ("flipped horizontally", [3]),
        ("turned by 180 degrees", [2, 3]),
    ):
        yield trial("flipped", name, f"the renders are {name}", shown.flip(axes))
    yield trial(*_background(shown, wanted))
    for name, order in _orders(shown, wanted):
        yield trial("order", f"frames {name}", f"the frames are {name}", shown[order])
    yield trial(*_scaled(shown, wanted))
    yield trial(*_faded(shown, wanted))


def split_trials(shown: Tensor, wanted: Tensor, others: Mapping[str, Tensor]) -> Iterator[Trial]:
    """Compare the renders with the pictures of another split, number by number."""
    for name, pictures in others.items():
        n = min(len(shown), len(pictures))
        if n == 0 or pictures.shape[1:] != shown.shape[1:]:
            continue
        before = squared_error(shown[:n], wanted[:n])
        after = squared_error(shown[:n], pictures[:n])
        statement = f"the renders show the views of {name}"
        yield _trial("split", f"views of {name}", statement, before, after, None)


def border_colour(pictures: Tensor) -> Tensor:
    """Return the median colour of the pictures' outermost pixels, [1, 3, 1, 1]."""
    rim = torch.cat(
        [
            pictures[:, :, [0, -1], :].transpose(0, 1).flatten(1),
            pictures[:, :, :, [0, -1]].transpose(0, 1).flatten(1),
        ],
        dim=1,
    )
    return rim.median(dim=1).values.reshape(1, 3, 1, 1)


def _distance(pictures: Tensor, colour: Tensor) -> Tensor:
    """Largest difference from a colour over the channels, [n, h, w]."""
    return (pictures - colour).abs().amax(dim=1)


def _background(shown: Tensor, wanted: Tensor) -> tuple[str, str, str, Tensor]:
    """Replace the renders' background by the references'."""
    ours, theirs = border_colour(shown), border_colour(wanted)
    bare = (_distance(shown, ours) < _HARDLY)[:, None]
    described = [
        "(" + ", ".join(f"{value:.2f}" for value in colour.flatten().tolist()) + ")"
        for colour in (ours, theirs)
    ]
    statement = f"the background is {described[0]}, the references have {described[1]}"
    return "background", "on another background", statement, torch.where(bare, theirs, shown)


def _orders(shown: Tensor, wanted: Tensor) -> Iterator[tuple[str, list[int]]]:
    """Yield orders in which to take the renders: those that bugs make, then the best of all."""
    n = len(shown)
    if n < 2:
        return
    by_name = sorted(range(n), key=str)
    inverse = [by_name.index(i) for i in range(n)]
    if by_name != list(range(n)):
        yield "ordered by name (0, 1, 10, 2)", inverse
        yield "ordered by name on the other side", by_name
    yield "reversed", list(range(n))[::-1]
    small = [
        torch.nn.functional.adaptive_avg_pool2d(pictures, 24).flatten(1).double()
        for pictures in (shown, wanted)
    ]
    cost = torch.cdist(small[1], small[0]).square()  # [reference, render]
    _, best = linear_sum_assignment(cost.numpy())
    late = int(np.bincount((best - np.arange(n)) % n).argmax())  # the commonest displacement
    if late:
        name = f"late by {late}" if late <= n // 2 else f"early by {n - late}"
        yield name, [(i + late) % n for i in range(n)]
    yield "shuffled", best.tolist()


def _scaled(shown: Tensor, wanted: Tensor) -> tuple[str, str, str, Tensor]:
    """Find the scale about the image centre that fits best; coarse on a few frames, then finer."""
    chosen = np.unique(np.linspace(0, len(shown) - 1, _SEARCH_FRAMES).astype(int))
    few, targets = shown[chosen], wanted[chosen]

    def error(scale: float) -> float:
        return squared_error(_rescale(few, scale), targets)

    best = min(_SCALES, key=error)
    step = float(_SCALES[1] / _SCALES[0])
    for _ in range(4):
        step = math.sqrt(step)
        best = min((best / step, best, best * step), key=error)
    statement = f"the renders are {best:.3f} times as large as the references about the centre"
    return "scale", f"scaled by {best:.3f}", statement, _rescale(shown, float(best))


def _rescale(pictures: Tensor, scale: float) -> Tensor:
    """Undo a magnification by `scale` about the centre; the rim is filled with background."""
    colour = border_colour(pictures)
    theta = pictures.new_tensor([[scale, 0.0, 0.0], [0.0, scale, 0.0]])
    theta = theta.expand(len(pictures), 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(pictures - colour, grid, align_corners=False)
    return moved + colour


def opacity_share(shown: Tensor, wanted: Tensor) -> float:
    """Least-squares opacity of the renders, if they are the references over their background."""
    ours, theirs = shown - border_colour(shown), wanted - border_colour(wanted)
    return float((ours * theirs).sum() / theirs.square().sum().clamp_min(1e-12))


def _faded(shown: Tensor, wanted: Tensor) -> tuple[str, str, str, Tensor]:
    """Amplify the renders' difference from their background."""
    share = min(max(opacity_share(shown, wanted), 0.05), 1.0)
    colour = border_colour(shown)
    statement = f"the renders have {share:.0%} of the references' opacity"
    amplified = ((shown - colour) / share + colour).clamp(0, 1)
    return "faint", f"at {share:.0%} opacity", statement, amplified


def _silhouettes(shown: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return where renders and references show something, [n, h, w]."""
    return (
        _distance(shown, border_colour(shown)) > _CLEARLY,
        _distance(wanted, border_colour(wanted)) > _CLEARLY,
    )


def overlap(shown: Tensor, wanted: Tensor) -> float:
    """Return intersection over union of the silhouettes."""
    ours, theirs = _silhouettes(shown, wanted)
    union = int((ours | theirs).sum())
    return int((ours & theirs).sum()) / union if union else 1.0


def same_palette(shown: Tensor, wanted: Tensor) -> bool:
    """True if the objects' colours are distributed alike, wherever they are in the pictures."""
    histograms = []
    for pictures, mask in zip((shown, wanted), _silhouettes(shown, wanted), strict=True):
        colours = pictures.permute(0, 2, 3, 1)[mask]
        bins = (colours * 3.999).long() @ torch.tensor([16, 4, 1])
        counts = torch.bincount(bins, minlength=64).double()
        histograms.append(counts / counts.sum().clamp_min(1))
    return float(torch.minimum(*histograms).sum()) > 0.6


def cut_off(shown: Tensor, wanted: Tensor) -> CutOff:
    """Test whether the renders lack a part of the object that lies beyond some straight limit.

    The correction puts the missing pixels back. It explains a cut only if the object's extent
    shrank: holes in its middle leave the extent as it is.
    """
    ours, theirs = _silhouettes(shown, wanted)
    missing = theirs & (_distance(shown, border_colour(shown)) < _HARDLY)
    corrected = torch.where(missing[:, None], wanted, shown)
    before, after = squared_error(shown, wanted), squared_error(corrected, wanted)
    share = int(missing.sum()) / max(int(theirs.sum()), 1)
    shrunk = 1 - _extent(ours & theirs) / max(_extent(theirs), 1e-9)
    statement = (
        f"{share:.0%} of the object's pixels are missing at its rim (its extent is {shrunk:.0%}"
        " smaller) and the rest fits, so it seems cut off at the box"
    )
    trial = _trial("box", "cut off at the box", statement, before, after, None)
    return CutOff(trial, share > 0.02 and shrunk > 0.02)


def _extent(masks: Tensor) -> float:
    """Mean area of the masks' bounding boxes in pixels."""
    rows, columns = masks.any(dim=2).double(), masks.any(dim=1).double()
    return float((_span(rows) * _span(columns)).mean())


def _span(occupied: Tensor) -> Tensor:
    """Number of places from the first to the last one that is set, per row of [n, k]."""
    k = occupied.shape[1]
    place = torch.arange(k)
    first = torch.where(occupied > 0, place, k).amin(dim=1)
    last = torch.where(occupied > 0, place, -1).amax(dim=1)
    return (last - first + 1).clamp_min(0).double()


def compositing_trials(
    renders: np.ndarray, references: np.ndarray, references_rgba: np.ndarray
) -> Iterator[Trial]:
    """Compose the references in the ways that go wrong, and compare on the soft pixels.

    With premultiplied colour C = alpha c over a background B, right is C + (1 - alpha) B.

    Args:
        renders: uint8 [n, h, w, 3].
        references: uint8 [n, h, w, 3].
        references_rgba: Premultiplied floats [n, h, w, 4].
    """
    alpha = references_rgba[..., 3:]
    soft = ((alpha > 0.05) & (alpha < 0.95))[..., 0]
    if not soft.any():
        return
    shown, wanted = renders[soft] / 255.0, references[soft] / 255.0
    rim = np.concatenate(
        [references[:, [0, -1]].reshape(-1, 3), references[:, :, 0].reshape(-1, 3)]
    )
    paper = np.median(rim, axis=0) / 255.0
    a, colour = alpha[soft], references_rgba[soft][:, :3]
    wrong = {
        "straight colours taken as premultiplied": colour / a + (1 - a) * paper,
        "composed on the background twice": colour + 2 * (1 - a) * paper,
        "premultiplied twice": a * colour + (1 - a) * paper,
    }
    before = float(np.mean((shown - wanted) ** 2))
    for name, pixels in wrong.items():
        after = float(np.mean((shown - np.clip(pixels, 0, 1)) ** 2))
        yield _trial("compositing", name, f"soft edges look {name}", before, after, None)
