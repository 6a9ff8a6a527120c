"""What a time looks like, with and without a network: pages, pictures, arrays, a summary.

Files of one time carry its name: `{scenario}_{time}.html`, `{scenario}_{time}_summary.json` and,
per vehicle, `views/{scenario}_{time}_{agent}_*.png|npy`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loom.files import explained, write_atomic, write_json

from coopcyl import figures
from coopcyl.data.images import write_png
from coopcyl.data.samples import SetSample, sample_of
from coopcyl.data.tree import AgentFrame, Frame
from coopcyl.geometry.rig import Rig
from coopcyl.geometry.view import View
from coopcyl.metrics import mask_metrics, range_metrics, rot_err_deg, trans_err_m
from coopcyl.models.predict import SetPrediction, range_along_rays
from coopcyl.rerun_export import write_recording
from coopcyl.scene_page import SceneView, scene_page

MASK_BAND = (0.05, 0.98)
LARGEST_ERROR_M = 10.0
_MAP_M = 40.0
_MAP_PIXELS = 512


@dataclass(frozen=True, eq=False)
class Seen:
    """One vehicle as it is shown.

    Attributes:
        agent: Which.
        view: What its files say.
        rig: Its cameras.
    """

    agent: AgentFrame
    view: View
    rig: Rig


def write_scene(
    frame: Frame,
    seen: Sequence[Seen],
    folder: Path,
    found: SetPrediction | None = None,
    *,
    rerun: bool = False,
) -> Path:
    """Write one time; return the page.

    Args:
        frame: The time.
        seen: Its vehicles, the reference first.
        folder: Where to write; made if needed.
        found: What a network says of them; without it, only what the files say.
        rerun: Also write a recording for the Rerun viewer.
    """
    stem = f"{frame.scenario}_{frame.time}"
    with explained(folder):
        (folder / "views").mkdir(parents=True, exist_ok=True)
    sample = sample_of([each.view for each in seen], np.random.default_rng(0))
    summary, views = {}, []
    for i, each in enumerate(seen):
        cloud, pictures = _shown(each.view, sample, found, i)
        facts = _facts(sample, found, i)
        for name, picture in pictures.items():
            write_png(folder / "views" / f"{stem}_{each.agent.agent}_{name}.png", picture)
        for name, array in _arrays(sample, found, i).items():
            np.save(folder / "views" / f"{stem}_{each.agent.agent}_{name}.npy", array)
        poses = {} if found is None else {"pred": found.poses[i]}
        poses |= {"gt": sample.poses[i]}
        views.append(
            SceneView(
                each.agent.agent,
                {name: pictures[name] for name in ("rgb", "depth", "mask")},
                *cloud,
                poses,
                each.rig.cameras,
                facts,
                2 * np.pi / each.view.table.panorama.width,
            )
        )
        summary[str(each.agent.agent)] = facts | {
            "poses": {k: p.tolist() for k, p in poses.items()}
        }
    note = "Points from the files." if found is None else "Points from the predicted ranges."
    if rerun:
        write_recording(folder / f"{stem}.rrd", stem, views)
    page = folder / f"{stem}.html"
    write_atomic(page, scene_page(f"{frame.scenario} / {frame.time}", note, views))
    write_json(
        folder / f"{stem}_summary.json", {"vehicles": summary, "warnings": warnings(summary)}
    )
    return page


def warnings(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what in a summary needs a second look, and where to look."""
    result = []
    for agent, facts in summary.items():
        share = facts.get("pred_mask_mean")
        if share is not None and not MASK_BAND[0] <= share <= MASK_BAND[1]:
            result.append(f"vehicle {agent}: the predicted mask holds {share:.3f} of the pixels")
        error = facts.get("trans_err_m", 0.0)
        if error > LARGEST_ERROR_M:
            result.append(
                f"vehicle {agent}: {error:.1f} m off; change to the true pose on the page: if the "
                "clouds fit then, the matches are at fault, otherwise the ranges"
            )
    return result


def _shown(
    view: View, sample: SetSample, found: SetPrediction | None, i: int
) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """Return points with colours, and the pictures of one vehicle."""
    range_m, mask = sample.range_m[i], sample.surface[i]
    if not sample.surface_known[i]:
        mask = range_m > 0
    points = sample.origins[i] + range_m[..., None] * sample.rays[i]
    if found is not None:
        outputs = found.views[i]
        range_m = range_along_rays(outputs, sample.origins[i])
        mask = outputs["non_ambiguous_mask"][0].cpu().numpy()
        points = outputs["pts3d_cam"][0].cpu().numpy()
    chosen = mask & (range_m > 0)
    shown = np.where(chosen, range_m, 0)
    pictures = {
        "rgb": view.rgb,
        "depth": figures.range_picture(shown, view.max_range_m),
        "mask": figures.mask_picture(mask),
        "cloud": map_picture(points[chosen], view.rgb[chosen]),
    }
    return (points[chosen], view.rgb[chosen]), pictures


def _arrays(sample: SetSample, found: SetPrediction | None, i: int) -> dict[str, np.ndarray]:
    """Return what is kept of one vehicle for notebooks."""
    arrays = {"depth_true": sample.range_m[i], "mask_true": sample.surface[i]}
    if found is not None:
        outputs = found.views[i]
        arrays |= {
            "depth": range_along_rays(outputs, sample.origins[i]),
            "points": outputs["pts3d"][0].cpu().numpy(),
            "mask_logits": outputs["non_ambiguous_mask_logits"][0].cpu().numpy(),
            "conf": outputs["conf"][0].cpu().numpy(),
        }
    return arrays


def _facts(sample: SetSample, found: SetPrediction | None, i: int) -> dict[str, float]:
    """Return the numbers of one vehicle."""
    true, covered = sample.range_m[i], sample.covered[i]
    facts = {
        "coverage": float(covered.mean()),
        "valid_mask_ratio": float((true > 0).mean()),
        "distance_m": float(np.linalg.norm(sample.poses[i][:3, 3])),
    }
    if found is None:
        return facts
    outputs = found.views[i]
    range_m = range_along_rays(outputs, sample.origins[i])
    facts |= {
        "trans_err_m": trans_err_m(found.poses[i], sample.poses[i]),
        "rot_err_deg": rot_err_deg(found.poses[i], sample.poses[i]),
        "confidence": float(found.confidence[i]),
        "metric_scaling_factor": float(outputs["metric_scaling_factor"][0, 0]),
    }
    facts |= range_metrics(range_m, true, true > 0)
    chance = outputs["non_ambiguous_mask_logits"][0].sigmoid().cpu().numpy()[covered]
    facts["pred_mask_mean"] = float(chance.mean())
    if sample.surface_known[i]:
        facts |= mask_metrics(chance, sample.surface[i][covered])
    return {name: value for name, value in facts.items() if np.isfinite(value)}


def map_picture(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return points of the rig frame from above, `(512, 512, 3)`: forward is up, 80 m wide."""
    picture = np.full((_MAP_PIXELS, _MAP_PIXELS, 3), 17, np.uint8)
    scale = _MAP_PIXELS / (2 * _MAP_M)
    column = np.floor((points[:, 0] + _MAP_M) * scale).astype(int)
    row = np.floor((_MAP_M - points[:, 2]) * scale).astype(int)
    inside = (column >= 0) & (column < _MAP_PIXELS) & (row >= 0) & (row < _MAP_PIXELS)
    order = np.argsort(-points[inside, 1], kind="stable")  # the highest last, on top
    picture[row[inside][order], column[inside][order]] = colours[inside][order]
    return picture
