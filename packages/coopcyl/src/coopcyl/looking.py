"""What the commands write that show data: panoramas, masks, and points and boxes in the images."""

from pathlib import Path

import numpy as np
from loom.errors import UserError
from loom.files import explained, write_json

from coopcyl import figures
from coopcyl.data.frame_yaml import read_frame
from coopcyl.data.images import read_png, write_png
from coopcyl.data.panoramas import PanoramaReader, frame_rig
from coopcyl.data.pcd import read_pcd
from coopcyl.data.rig_file import read_rig_file
from coopcyl.data.tree import AgentFrame, Frame, Tree
from coopcyl.geometry.carla import CV_FROM_UE
from coopcyl.geometry.central_view import CentralView, central_view
from coopcyl.geometry.coverage import expected_coverage
from coopcyl.geometry.panorama import Panorama
from coopcyl.geometry.stitch_table import build_table
from coopcyl.geometry.view import View
from coopcyl.render import Seen, write_scene


def choose_frame(tree: Tree, wanted: str) -> Frame:
    """Return a time by its index or as `scenario/time`.

    Raises:
        UserError: There is none.
    """
    if wanted.removeprefix("-").isdecimal():
        index = int(wanted)
        if -len(tree.frames) <= index < len(tree.frames):
            return tree.frames[index]
    for frame in tree.frames:
        if wanted == f"{frame.scenario}/{frame.time}":
            return frame
    first = tree.frames[0]
    raise UserError(
        f"{tree.root / tree.split}: no time {wanted}; it has {len(tree.frames)}",
        hint=f"an index from 0, or scenario/time such as {first.scenario}/{first.time}",
    )


def preview(
    frame: Frame, reader: PanoramaReader, folder: Path, *, depth_aware: bool = False
) -> list[Path]:
    """Write pictures and arrays of each vehicle's view at one time; return the files.

    Per vehicle `{time}_{agent}_` and `rgb`, `range`, `coverage`, `depth_valid`, `non_ambiguous`,
    `camera` as PNG, and `range` and `camera` as npy; with them `summary.json`.

    Args:
        frame: The time.
        reader: How panoramas are made.
        folder: Where to write.
        depth_aware: Also `central`, the panorama from one centre without seams.
    """
    make_folder(folder)
    written, summary = [], {}
    for agent in frame.agents:
        view = reader.read(agent)
        stem = f"{frame.time}_{agent.agent}"
        written += _write_view(folder, stem, view)
        if depth_aware:
            written.append(folder / f"{stem}_central.png")
            write_png(written[-1], _central(agent, reader).rgb)
        summary[str(agent.agent)] = {
            "frame": str(agent),
            "cameras": list(agent.cameras),
            "coverage": float(view.coverage.mean()),
            "depth_valid": float(view.depth_valid.mean()),
            "non_ambiguous": None
            if view.non_ambiguous is None
            else float(view.non_ambiguous.mean()),
        }
    write_json(folder / "summary.json", summary)
    return [*written, folder / "summary.json"]


def _central(agent: AgentFrame, reader: PanoramaReader) -> CentralView:
    images = [read_png(agent.image(name), "RGB") for name in agent.cameras]
    rig = frame_rig(read_frame(agent.yaml), agent.cameras, [image.shape[:2] for image in images])
    return central_view(rig, images, reader.depth.read(agent, rig.cameras), reader.panorama)


def see(agent: AgentFrame, reader: PanoramaReader) -> Seen:
    """Read one vehicle with its cameras."""
    stitched = reader.stitch(agent)
    return Seen(agent, reader.view(agent, stitched), stitched.rig)


def viz(frame: Frame, reader: PanoramaReader, folder: Path, *, rerun: bool = False) -> Path:
    """Write the page of one time as the files have it; return it."""
    return write_scene(frame, [see(agent, reader) for agent in frame.agents], folder, rerun=rerun)


def _write_view(folder: Path, stem: str, view: View) -> list[Path]:
    pictures = {
        "rgb": view.rgb,
        "range": figures.range_picture(view.range_m, view.max_range_m),
        "coverage": figures.mask_picture(view.coverage),
        "depth_valid": figures.mask_picture(view.depth_valid),
        "camera": figures.camera_picture(view.table.camera),
    }
    if view.non_ambiguous is not None:
        pictures["non_ambiguous"] = figures.mask_picture(view.non_ambiguous)
    arrays = {"range": view.range_m, "camera": view.table.camera}
    written = []
    for name, picture in pictures.items():
        written.append(folder / f"{stem}_{name}.png")
        write_png(written[-1], picture)
    for name, array in arrays.items():
        written.append(folder / f"{stem}_{name}.npy")
        with explained(written[-1]):
            np.save(written[-1], array)
    return written


def project(frame: Frame, reader: PanoramaReader, folder: Path) -> list[Path]:
    """Draw each vehicle's LiDAR points and the boxes of the others into all its images.

    If points lie on the things they belong to, poses, axes and intrinsics are understood.
    """
    make_folder(folder)
    return [path for agent in frame.agents for path in _project_agent(agent, reader, folder)]


def _project_agent(agent: AgentFrame, reader: PanoramaReader, folder: Path) -> list[Path]:
    record = read_frame(agent.yaml)
    stitched = reader.stitch(agent)
    view = reader.view(agent, stitched)
    points = np.zeros((0, 3))
    if agent.pcd.exists():
        points = read_pcd(agent.pcd).astype(np.float64) @ CV_FROM_UE[:3, :3].T
    boxes = [figures.box_lines(v, view.pose_world_from_rig) for v in record.vehicles]
    stem = f"{agent.time}_{agent.agent}"
    written = []
    for camera in stitched.rig.cameras:
        image = read_png(agent.image(camera.name), "RGB")
        drawn = figures.points_in_camera(image, camera, points)
        written.append(folder / f"{stem}_{camera.name}.png")
        write_png(written[-1], figures.boxes_in_camera(drawn, camera, boxes))
    drawn = figures.points_in_panorama(view, points)
    written.append(folder / f"{stem}_panorama.png")
    write_png(written[-1], figures.boxes_in_panorama(drawn, view, boxes))
    return written


def stitch(rig_file: Path, panorama: Panorama, folder: Path) -> str:
    """Stitch loose images by a rig file; return what was done in one line."""
    rig, images, depths = read_rig_file(rig_file)
    table = build_table(rig, panorama)
    make_folder(folder)
    write_png(folder / "panorama.png", table.stitch(images))
    write_png(folder / "camera.png", figures.camera_picture(table.camera))
    write_png(folder / "coverage.png", figures.mask_picture(table.coverage))
    if depths is not None:
        range_m = table.stitch_range(depths)
        write_png(folder / "range.png", figures.range_picture(range_m, 100.0))
        with explained(folder):
            np.save(folder / "range.npy", range_m)
    return (
        f"{len(images)} images to {panorama.width}x{panorama.height}: coverage "
        f"{table.coverage.mean():.3f} ({expected_coverage(rig, panorama):.3f} follows from the rig)"
    )


def make_folder(folder: Path) -> None:
    """Make a folder for output and its parents."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
