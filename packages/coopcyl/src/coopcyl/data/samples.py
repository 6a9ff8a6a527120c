"""Sets of views as arrays to learn from, with draws that depend on the sample and nothing else.

Two changes of the world keep its geometry exact. A mirror flips the panorama and the rig with it,
and a relative pose M becomes F M F with F = diag(-1, 1, 1, 1). Exchanged or scaled colours make
another world of the same shape. Both are drawn by the sample's position in the run's stream, so
every number of processes sees the same samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from loom.sampling import draw_rng

from coopcyl.data.sampler import SampledSet
from coopcyl.data.tree import AgentFrame
from coopcyl.geometry.carla import inverse
from coopcyl.geometry.view import View

_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Augmentation:
    """How far a sample is changed.

    Attributes:
        mirror: Chance of a mirrored world.
        colours: Chance of exchanged colour channels, the same in all views.
        shared_gain: Standard deviation of the log brightness of a set, per channel.
        view_gain: The same of each view by itself.
        contrast: Standard deviation of the log contrast of a set.
        offset: Standard deviation of what is added to a view, of a range of 1.
    """

    mirror: float = 0.5
    colours: float = 0.6
    shared_gain: float = 0.15
    view_gain: float = 0.04
    contrast: float = 0.25
    offset: float = 0.02


NONE = Augmentation(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class SetSample:
    """Views of one time.

    Attributes:
        rgb: `(v, h, w, 3)` float32 in [0, 1].
        rays: `(v, h, w, 3)` float32 unit directions.
        origins: `(v, h, w, 3)` float32.
        covered: `(v, h, w)` bool.
        range_m: `(v, h, w)` float32 true range, 0 where there is none.
        surface: `(v, h, w)` bool, the true mask.
        surface_known: `(v,)` bool, whether there is a true mask.
        poses: `(v, 4, 4)` float64, from each view to the first.
        keys: `(v, h, w)` float32 in [0, 1): which tokens are asked first.
    """

    rgb: np.ndarray
    rays: np.ndarray
    origins: np.ndarray
    covered: np.ndarray
    range_m: np.ndarray
    surface: np.ndarray
    surface_known: np.ndarray
    poses: np.ndarray
    keys: np.ndarray


def sample_of(views: Sequence[View], keys: np.random.Generator) -> SetSample:
    """Return views, the reference first, as arrays."""
    first = inverse(views[0].pose_world_from_rig)
    masks = [view.non_ambiguous for view in views]
    covered = np.stack([view.coverage for view in views])
    return SetSample(
        np.stack([view.rgb for view in views]).astype(np.float32) / np.float32(255),
        np.stack([view.table.directions for view in views]),
        np.stack([view.ray_origins() for view in views]),
        covered,
        np.stack([np.where(view.depth_valid, view.range_m, 0) for view in views]),
        np.stack([np.zeros_like(covered[0]) if mask is None else mask for mask in masks]),
        np.array([mask is not None for mask in masks]),
        np.stack([first @ view.pose_world_from_rig for view in views]),
        keys.random(covered.shape, np.float32),
    )


def augmented(sample: SetSample, rng: np.random.Generator, options: Augmentation) -> SetSample:
    """Return a sample of another world with the same truth."""
    if rng.random() < options.mirror:
        sample = mirrored(sample)
    rgb = sample.rgb
    if rng.random() < options.colours:
        rgb = rgb[..., rng.permutation(3)]
    views = len(rgb)
    gain = np.exp(
        options.shared_gain * rng.standard_normal(3)
        + options.view_gain * rng.standard_normal((views, 3))
    )
    offset = options.offset * rng.standard_normal((views, 3))
    contrast = np.exp(options.contrast * rng.standard_normal())
    gain, offset = contrast * gain, offset + 0.5 * (1 - contrast)  # round a middle grey
    changed = rgb * gain[:, None, None].astype(np.float32)
    changed += offset[:, None, None].astype(np.float32)
    return replace(sample, rgb=changed.clip(0, 1))


def mirrored(sample: SetSample) -> SetSample:
    """Return the sample of the mirrored world, left for right."""

    def flipped(array: np.ndarray) -> np.ndarray:
        return array[:, :, ::-1]

    sign = np.array([-1, 1, 1], np.float32)
    return replace(
        sample,
        rgb=flipped(sample.rgb),
        rays=flipped(sample.rays) * sign,
        origins=flipped(sample.origins) * sign,
        covered=flipped(sample.covered),
        range_m=flipped(sample.range_m),
        surface=flipped(sample.surface),
        poses=_MIRROR @ sample.poses @ _MIRROR,
    )


def read_sample(
    chosen: SampledSet,
    read: Callable[[AgentFrame], View],
    seed: int,
    augmentation: Augmentation = NONE,
) -> SetSample:
    """Read the views of a set and change them by draws of its position in the stream.

    Args:
        chosen: Which vehicles.
        read: Reads one view, such as `StitchedCache.read`.
        seed: Of the run.
        augmentation: How far the sample is changed.
    """
    rng = draw_rng(seed, chosen.position, "augmentation")
    sample = sample_of([read(agent) for agent in chosen.agents], rng)
    return sample if augmentation == NONE else augmented(sample, rng, augmentation)
