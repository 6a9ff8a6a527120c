"""Image scores as view-synthesis papers report them: PSNR, SSIM in two windows, LPIPS.

Everything here works on the 8-bit pictures that are shown and stored, so a score can be made again
from the files. Three conventions differ between published tables, and are fixed by name here:

- PSNR is taken per frame, -10 log10(mean squared error) with a peak of 1, and then averaged over
  the frames; the PSNR of the mean error is a different and smaller number.
- SSIM (Wang et al. 2004, eq. 13; gaussian 11x11, sigma 1.5, biased moments, mean over channels)
  depends on the border: `ssim` is the "padded" window of the 3D Gaussian Splatting code, which
  reads zeros beyond the border; `ssim_valid` averages only windows that lie inside the picture, as
  scikit-image does. torchmetrics 1.9 reflects the picture at its border, which is a third number.
- LPIPS needs weights by file (`loom.evaluation.lpips`); without them it is None, never a proxy.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.ndimage import correlate1d

from loom.errors import UserError

Window = Literal["padded", "valid"]

RADIUS = 5
_GAUSSIAN = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_C1, _C2 = 0.01**2, 0.03**2


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Quantise a picture with values in [0, 1] to 8 bits, rounding to nearest.

    Raises:
        UserError: If a value is not finite.
    """
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    if not np.isfinite(image).all():
        bad = int(image.size - np.isfinite(image).sum())
        raise UserError(
            f"picture has {bad} of {image.size} values that are not finite",
            hint="look at the checkpoint or the renderer that made it",
        )
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def psnr_db(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return the peak signal-to-noise ratio of one 8-bit picture in dB.

    Args:
        image: (height, width, 3) uint8.
        reference: Same shape and type.
        mask: (height, width) bool; only these pixels count (foreground PSNR).

    Returns:
        -10 log10(mean squared error), inf for identical pictures.
    """
    _check(image, reference)
    difference = image.astype(np.int32) - reference
    if mask is not None:
        if mask.shape != image.shape[:2]:
            raise UserError(
                f"mask is {_size(mask)}, picture is {_size(image)}",
                hint="a mask has one value per pixel",
            )
        if not mask.any():
            raise UserError("mask is empty: no pixel to score", hint="leave this frame's mask out")
        difference = difference[mask.astype(bool)]
    error = float(np.mean(np.square(difference))) / 255.0**2
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def ssim(image: np.ndarray, reference: np.ndarray, window: Window = "padded") -> float:
    """Return the structural similarity of one 8-bit picture.

    Args:
        image: (height, width, 3) uint8.
        reference: Same shape and type.
        window: "padded" reads zeros beyond the border (3DGS code), "valid" keeps to windows inside
            the picture (scikit-image with gaussian weights).
    """
    _check(image, reference)
    padded, valid = _ssim_both(image, reference)
    if window == "padded":
        return padded
    if window == "valid":
        return _required(valid, image)
    raise ValueError(f'window is "padded" or "valid", got {window!r}')


class Pair(NamedTuple):
    """A picture and what it should look like."""

    name: str
    image: np.ndarray  # (height, width, 3) uint8
    reference: np.ndarray  # (height, width, 3) uint8
    mask: np.ndarray | None = None  # (height, width) bool: the foreground, where known


@dataclass(frozen=True)
class FrameScores:
    """The scores of one picture; None is "not evaluated"."""

    name: str
    psnr_db: float
    ssim: float
    ssim_valid: float
    lpips: float | None = None
    foreground_psnr_db: float | None = None


METRICS = ("psnr_db", "ssim", "ssim_valid", "lpips", "foreground_psnr_db")


@dataclass(frozen=True)
class Scores:
    """The scores of a set of pictures, with what is needed to make them again."""

    frames: tuple[FrameScores, ...]
    images_sha256: str
    references_sha256: str
    lpips_weights: dict[str, str] | None  # file -> sha256, or None where LPIPS was not evaluated

    @property
    def means(self) -> dict[str, float | None]:
        """The mean of each metric over the frames; None where no frame has a value.

        Identical frames (PSNR inf) are left out of a mean unless all are: otherwise a single empty
        frame would carry every gate. `counts` says over how many frames each mean goes.
        """
        return {metric: _mean(self._averaged(metric)) for metric in METRICS}

    @property
    def counts(self) -> dict[str, int]:
        """The number of frames in each mean, and how many are identical to their reference."""
        counts = {metric: len(self._averaged(metric)) for metric in METRICS}
        return counts | {"identical": sum(math.isinf(frame.psnr_db) for frame in self.frames)}

    def to_json(self) -> dict[str, object]:
        """Return a mapping for a strict JSON file; an infinite PSNR becomes the string "inf"."""
        return {
            "frames": [
                {"name": frame.name}
                | {metric: json_number(getattr(frame, metric)) for metric in METRICS}
                for frame in self.frames
            ],
            "means": {metric: json_number(value) for metric, value in self.means.items()},
            "counts": {"frames": len(self.frames)} | self.counts,
            "images_sha256": self.images_sha256,
            "references_sha256": self.references_sha256,
            "lpips_weights": self.lpips_weights,
        }

    def _averaged(self, metric: str) -> list[float]:
        values = [getattr(frame, metric) for frame in self.frames]
        measured = [value for value in values if value is not None]
        finite = [value for value in measured if math.isfinite(value)]
        return finite or measured


class PictureDistance(NamedTuple):
    """A learned distance and the files that it was made from."""

    distance: Callable[[np.ndarray, np.ndarray], float]
    files: dict[str, str]  # file name -> sha256


def evaluate_pairs(pairs: Iterable[Pair], lpips: PictureDistance | None = None) -> Scores:
    """Score pictures against their references, frame by frame.

    Args:
        pairs: Taken one at a time, so they may be rendered on the way.
        lpips: From `loom.evaluation.lpips`; without it LPIPS stays None.

    Raises:
        UserError: If there is no frame, or one does not fit its reference (the frame is named).
    """
    frames: list[FrameScores] = []
    images, references = hashlib.sha256(), hashlib.sha256()
    for pair in pairs:
        try:
            frames.append(_score(pair, lpips))
        except UserError as error:
            raise UserError(f"frame {pair.name}: {error.message}", hint=error.hint) from error
        for digest, picture in ((images, pair.image), (references, pair.reference)):
            digest.update(f"{pair.name} {picture.shape}".encode())
            digest.update(np.ascontiguousarray(picture).tobytes())
    if not frames:
        raise UserError("no frames to evaluate", hint="check the split and the folder")
    return Scores(
        frames=tuple(frames),
        images_sha256=images.hexdigest(),
        references_sha256=references.hexdigest(),
        lpips_weights=None if lpips is None else lpips.files,
    )


def json_number(value: float | None) -> float | str | None:
    """Return a value for strict JSON, which knows no infinities: inf becomes the string "inf"."""
    if value is None or math.isfinite(value):
        return value
    return str(value)


def _score(pair: Pair, lpips: PictureDistance | None) -> FrameScores:
    image, reference, mask = pair.image, pair.reference, pair.mask
    decibels = psnr_db(image, reference)
    padded, valid = _ssim_both(image, reference)
    return FrameScores(
        name=pair.name,
        psnr_db=decibels,
        ssim=padded,
        ssim_valid=_required(valid, image),
        lpips=None if lpips is None else lpips.distance(image, reference),
        foreground_psnr_db=(
            None if mask is None or not mask.any() else psnr_db(image, reference, mask)
        ),
    )


def _ssim_both(image: np.ndarray, reference: np.ndarray) -> tuple[float, float | None]:
    """Return SSIM in the padded and in the valid window; both come from one map."""
    x = np.moveaxis(image, 2, 0) / 255.0  # (3, height, width) float64
    y = np.moveaxis(reference, 2, 0) / 255.0
    moments = np.stack([x, y, x * x, y * y, x * y])
    for axis in (2, 3):
        moments = correlate1d(moments, _GAUSSIAN, axis=axis, mode="constant", cval=0.0)
    mean_x, mean_y, square_x, square_y, product = moments
    mean_xy, mean_xx, mean_yy = mean_x * mean_y, mean_x**2, mean_y**2
    similarity = (2 * mean_xy + _C1) * (2 * (product - mean_xy) + _C2)
    similarity /= (mean_xx + mean_yy + _C1) * (square_x - mean_xx + square_y - mean_yy + _C2)
    inside = similarity[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
    return float(similarity.mean()), float(inside.mean()) if inside.size else None


def _required(valid: float | None, image: np.ndarray) -> float:
    if valid is None:
        raise UserError(
            f"picture is {_size(image)}, SSIM in the valid window needs 11x11 or more",
            hint="evaluate at a larger size",
        )
    return valid


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _check(image: np.ndarray, reference: np.ndarray) -> None:
    for role, picture in (("picture", image), ("reference", reference)):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(
                f"{role} is {picture.dtype} of shape {picture.shape}, expected uint8 RGB "
                "(height, width, 3)",
                hint="compose RGBA on a background first, then quantise with to_uint8",
            )
    if image.shape != reference.shape:
        raise UserError(
            f"picture is {_size(image)}, reference is {_size(reference)}",
            hint="render at the size of the reference",
        )
    if image.size == 0:
        raise UserError("picture has no pixels", hint="check the resolution")


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}" if picture.ndim >= 2 else str(picture.shape)
