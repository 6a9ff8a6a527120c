"""Every reader of every package with a small valid file for it."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from faults import Reader
from loom.arrays import write_npz

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10, 4), dtype=np.uint8)


def all_readers() -> list[Reader]:
    """Return the readers of all packages."""
    parts = (core(), featdistill(), pinpad(), coopcyl(), maniflow_overlay(), end2race())
    return list(itertools.chain.from_iterable(parts))


def keeping(name: str, content: str | bytes) -> Callable[[Path], Path]:
    """Return a writer of a fixed content."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def core() -> list[Reader]:
    from loom.checkpoint import Checkpoints
    from loom.config import Config, read_yaml, resolve
    from loom.progress import read_status
    from loom.record import read_records
    from loom.report_run import run_report
    from loom.runs import summary

    class Inner(Config):
        lr: float = 1e-3
        widths: tuple[int, ...] = (1, 2)

    class Settings(Config):
        seed: int = 0
        name: str = "x"
        train: Inner = Inner()

    yaml = "seed: 3\nname: demo\ntrain:\n  lr: 5e-4\n  widths: [1, 2]\n"
    status = {"state": "running", "step": 3, "total": 9, "pid": 1, "host": "a", "interval_s": 2.0}
    status |= {"heartbeat": 1.0, "metrics": {"metric/m": 1.0}}
    gates = [{"metric": "metric/m", "at": "end", "passed": True, "value": 1.0, "limit": "-inf"}]
    rows = "".join(
        json.dumps({"step": i, "time": 0.5, "loss": 1 / (i + 1)}) + "\n" for i in range(6)
    )
    run = {"thread": "a", "began": "2026-01-01T00:00:00+0000", "config": {"a": 1}, "parents": {}}

    def in_run(name: str, content: str) -> Callable[[Path], Path]:
        """A file of a run, whose facts stand beside it."""

        def write(folder: Path) -> Path:
            (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
            return keeping(name, content)(folder)

        return write

    def write_checkpoint(folder: Path) -> Path:
        state = {"model": {"w": torch.arange(6.0)}, "optimizer": {}}
        return Checkpoints(folder / "checkpoints").save(3, state) / "state.pt"

    def write_manifest(folder: Path) -> Path:
        return write_checkpoint(folder).with_name("manifest.json")

    def read_checkpoint(path: Path) -> object:
        return Checkpoints(path.parent.parent).load(path.parent)

    def whole_run(path: Path) -> object:
        return summary(path.parent), run_report(path.parent).html()

    return [
        Reader("core: config.yaml", keeping("c.yaml", yaml), read_yaml, text=True),
        Reader(
            "core: config.yaml, typed",
            keeping("c.yaml", yaml),
            lambda p: resolve(Settings, p),
            True,
        ),
        Reader(
            "core: status.json",
            in_run("status.json", json.dumps(status)),
            lambda p: (summary(p.parent), read_status(p.parent)),
            True,
        ),  # fmt: skip
        Reader("core: gates.json", in_run("gates.json", json.dumps(gates)), whole_run, True),
        Reader("core: run.json", in_run("run.json", json.dumps(run)), whole_run, True),
        Reader(
            "core: metrics.jsonl",
            in_run("metrics.jsonl", rows),
            lambda p: read_records(p.parent),
            True,
        ),
        Reader("core: checkpoint state", write_checkpoint, read_checkpoint),
        Reader("core: checkpoint manifest", write_manifest, read_checkpoint, True),
    ]


def featdistill() -> list[Reader]:
    from featdistill.data.bricks import BrickScene, write_scene
    from featdistill.data.nerf_synthetic import read_cameras, read_views
    from featdistill.data.ply import read_ply, write_ply
    from featdistill.data.png import read_any_png, write_png
    from featdistill.data.renders import read_rgba
    from featdistill.gaussians import Gaussians
    from featdistill.models import occupancy
    from featdistill.models.student import Student
    from featdistill.student_config import StudentConfig
    from featdistill.student_file import read_student, write_student

    def ply(folder: Path) -> Path:
        draw = torch.Generator().manual_seed(0)
        shapes = ((5, 3), (5, 3), (5, 4), (5,), (5, 16, 3))
        write_ply(folder / "a.ply", Gaussians(*(torch.randn(s, generator=draw) for s in shapes)))
        return folder / "a.ply"

    def scene(folder: Path) -> Path:
        write_scene(folder / "scene", BrickScene(width=16, train=2, test=1))
        return folder / "scene"

    def transforms(folder: Path) -> Path:
        return scene(folder) / "transforms_train.json"

    def picture(folder: Path) -> Path:
        return next((scene(folder) / "train").iterdir())

    def npz(folder: Path) -> Path:
        write_npz(folder / "a.npz", {"rgba": PIXELS.astype(np.float32) / 255})
        return folder / "a.npz"

    def png(folder: Path) -> Path:
        write_png(folder / "a.png", PIXELS)
        return folder / "a.png"

    def student(folder: Path) -> Path:
        config = StudentConfig(grid_resolution=2, occupancy_resolution=8, steps_per_axis=8)
        box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
        filled = torch.ones(occupancy.voxel_shape(box, 8), dtype=torch.uint8)
        made = Student(config, box, filled, torch.Generator().manual_seed(0))
        return write_student(made, folder / "s.safetensors").path

    return [
        Reader("featdistill: point_cloud.ply", ply, read_ply),
        Reader("featdistill: transforms.json", transforms, read_cameras, True),
        Reader(
            "featdistill: picture of a scene",
            picture,
            lambda p: read_views(p.parent.parent, "train"),
        ),  # fmt: skip
        Reader("featdistill: rgba .npz", npz, read_rgba),
        Reader("featdistill: PNG", png, read_any_png),
        Reader("featdistill: student.safetensors", student, read_student),
    ]


def pinpad() -> list[Reader]:
    from pinpad.data.episodes import Episode, read_episode, write_episode
    from pinpad.data.traces import read_trace, replay

    def episode(folder: Path) -> Path:
        steps = 12
        images = np.zeros((steps, 16, 16, 3), np.uint8)
        first, last = np.arange(steps) == 0, np.arange(steps) == steps - 1
        zeros = np.zeros(steps)
        made = Episode(
            "a",
            images,
            zeros.astype(np.int8),
            zeros.astype(np.float32),
            first,
            last,
            layout="three",
        )
        return write_episode(folder, made)

    def trace(folder: Path) -> Path:
        steps = 6
        fields = {
            "action": np.zeros(steps, np.int8),
            "reset": np.arange(steps) == 0,
            "reward": np.zeros(steps, np.float32),
            "is_first": np.arange(steps) == 0,
            "is_last": np.zeros(steps, bool),
            "position": np.full((steps, 2), 7, np.int16),
            "sequence_length": np.zeros(steps, np.int16),
            "countdown": np.zeros(steps, np.int16),
        }
        path = folder / "three.npz"
        digests = np.array([], "U64")
        spawns = np.zeros(1, np.int16)
        np.savez(
            path, **fields, spawn_index=spawns, length=np.int64(99), image_sha256_every_500=digests
        )
        return path

    return [
        Reader("pinpad: episode .npz", episode, read_episode),
        Reader("pinpad: trace .npz", trace, lambda p: replay(read_trace(p))),
    ]


def coopcyl() -> list[Reader]:
    from coopcyl.data.depth import encode_opv2v_h, read_carla_rgb24, read_npy, read_opv2v_h
    from coopcyl.data.frame_yaml import read_frame
    from coopcyl.data.images import read_png, write_png
    from coopcyl.data.pcd import read_pcd, write_pcd
    from coopcyl.data.rig_file import read_rig_file
    from coopcyl.data.synth.write import SynthOptions, write_tree

    def frame(folder: Path) -> Path:
        options = SynthOptions(scenarios=1, frames=1, vehicles=(1, 1), width=40, lidar=(2, 8))
        write_tree(folder / "tree", options)
        return next(path for path in folder.rglob("*.yaml") if path.stem.isdigit())

    def pcd(folder: Path) -> Path:
        write_pcd(folder / "a.pcd", np.random.default_rng(0).normal(size=(7, 3)))
        return folder / "a.pcd"

    def npy(folder: Path) -> Path:
        np.save(folder / "a.npy", np.random.default_rng(0).random((6, 8), np.float32) * 50)
        return folder / "a.npy"

    def png(folder: Path) -> Path:
        write_png(folder / "a.png", PIXELS[..., :3])
        return folder / "a.png"

    def opv2v_h(folder: Path) -> Path:
        write_png(folder / "h.png", encode_opv2v_h(np.full((6, 8), 12.5)))
        return folder / "h.png"

    rig = "origin: [0, 0, 1.9]\ncameras:\n" + "".join(
        f"  - {{name: c{i}, image: a.png, fov_deg: 100, position: [0, 0, 1]}}\n" for i in range(2)
    )

    def rig_file(folder: Path) -> Path:
        png(folder)
        return keeping("rig.yaml", rig)(folder)

    return [
        Reader("coopcyl: frame .yaml", frame, read_frame, True),
        Reader("coopcyl: LiDAR .pcd", pcd, read_pcd),
        Reader("coopcyl: depth .npy", npy, read_npy),
        Reader("coopcyl: depth, CARLA rgb24", png, read_carla_rgb24),
        Reader("coopcyl: depth, OPV2V-H", opv2v_h, read_opv2v_h),
        Reader("coopcyl: camera PNG", png, lambda p: read_png(p, "RGB")),
        Reader("coopcyl: rig.yaml", rig_file, read_rig_file, True),
    ]


def maniflow_overlay() -> list[Reader]:
    from maniflow_overlay.data.robotwin import EpisodeFile, read_episode
    from maniflow_overlay.data.synthetic import Scene, write_episode
    from maniflow_overlay.gripper_path import path_from_rows
    from maniflow_overlay.overlay.recorded import first_difference, read_cases
    from maniflow_overlay.paths.frames import FrameKey
    from maniflow_overlay.paths.grammar import Dialect, parse_answer
    from maniflow_overlay.paths.journal import read_events
    from maniflow_overlay.paths.old_pickles import read_pickle
    from maniflow_overlay.paths.table import PathRow, read_paths, write_paths

    points = [[0.1, 0.2, 1], [0.5, 0.6, 0]]

    def hdf5(folder: Path) -> Path:
        write_episode(folder / "episode0.hdf5", Scene(), 0)
        return folder / "episode0.hdf5"

    def table(folder: Path) -> Path:
        path = path_from_rows(points, "case")
        write_paths(
            folder / "p.jsonl", [PathRow(FrameKey("t", 0, i), "ok", path) for i in range(3)]
        )
        return folder / "p.jsonl"

    event = {
        "event": "answered",
        "task": "t",
        "episode": 0,
        "frame": 1,
        "question": "q",
        "text": "",
    }
    case = {"width": 8, "height": 8, "background_seed": 1, "path": points, "sha256_bgr": "0" * 64}
    answer = "<ans>[(0.1, 0.2), (0.3, 0.4), <action>Open Gripper</action>, (0.5, 0.6)]</ans>"

    def parse(path: Path) -> object:
        text = path.read_bytes().decode("utf-8", errors="replace")
        return [parse_answer(text, dialect) for dialect in Dialect]

    return [
        Reader(
            "maniflow_overlay: RoboTwin .hdf5", hdf5, lambda p: read_episode(EpisodeFile("t", 0, p))
        ),
        Reader("maniflow_overlay: paths.jsonl", table, read_paths, True),
        Reader(
            "maniflow_overlay: raw.jsonl",
            keeping("raw.jsonl", json.dumps(event) + "\n"),
            lambda p: list(read_events(p)),
            True,
        ),  # fmt: skip
        Reader("maniflow_overlay: path .pkl", keeping("a.pkl", pickle.dumps(points)), read_pickle),
        Reader(
            "maniflow_overlay: recorded drawings",
            keeping("c.json", json.dumps({"cases": [case]})),
            lambda p: first_difference(read_cases(p)),
            True,
        ),  # fmt: skip
        Reader("maniflow_overlay: answer of a model", keeping("answer.txt", answer), parse, True),
    ]


def end2race() -> list[Reader]:
    from end2race.cache.info import CacheInfo
    from end2race.cache.npz_compat import read_entry
    from end2race.cache.store import TeacherCache
    from end2race.data.calibration import Pose, level_camera
    from end2race.data.dataset import DatasetFile, open_dataset
    from end2race.data.images import read_image
    from end2race.data.lidar_files import read_points
    from end2race.data.writer import SegmentWriter, write_info
    from end2race.export_jobs import ExportPlan
    from end2race.exporting import ExportSettings
    from end2race.sim.track_files import read_track

    def dataset(folder: Path) -> Path:
        root = folder / "set"
        pose = Pose(np.eye(3), np.zeros(3))
        write_info(
            root, DatasetFile(lidar_num_features=4), level_camera(16, 8, 9.0, (0, 0, 0.2)), pose
        )
        draw = np.random.default_rng(0)
        writer = SegmentWriter(root, "train", "segment_0001")
        for frame in range(4):
            points = draw.uniform(-5, 5, (6, 4)).astype(np.float32)
            image = draw.integers(0, 256, (8, 16, 3), dtype=np.uint8)
            writer.append(10**9 + frame * 10**8, 2.0, 9.0 * frame, points=points, image=image)
        writer.close()
        return root

    def part(name: str) -> Callable[[Path], Path]:
        return lambda folder: dataset(folder) / name

    def first(pattern: str) -> Callable[[Path], Path]:
        return lambda folder: sorted(dataset(folder).rglob(pattern))[0]

    def opened(levels: int) -> Callable[[Path], object]:
        return lambda path: open_dataset(path.parents[levels])

    def cache(folder: Path) -> Path:
        fields = {"actions": (2, 2), "bev_vec": (3,), "gru_out": (2, 4)}
        info = CacheInfo("0" * 64, {"train": "f"}, 2, 1, "float32", fields)
        store = TeacherCache.create(folder / "cache", info)
        keys = [f"train/segment_0001:{start}" for start in range(3)]
        draw = np.random.default_rng(0)
        arrays = {
            name: draw.random((3, *(shape if name != "bev_vec" else (2, 3))), np.float32)
            for name, shape in fields.items()
        }
        arrays["bev_vec"][1:, 0] = arrays["bev_vec"][:-1, 1]  # a frame has one vector
        with store.writing():
            store.append(keys, arrays)
        return folder / "cache"

    def read_cache(path: Path) -> object:
        store = TeacherCache.open(path.parent)
        return store.read(list(store.keys), list(store.info.fields))

    def in_cache(pattern: str) -> Callable[[Path], Path]:
        return lambda folder: sorted(cache(folder).glob(pattern))[0]

    def plan(folder: Path) -> Path:
        settings = ExportSettings(folder / "data", folder / "teacher", folder / "cache")
        shards = tuple(tuple(range(8 * n, 8 * n + 8)) for n in range(5))
        ExportPlan(settings=settings, identity="0" * 64, first=2, shards=shards).write(
            folder / "plan-train.json"
        )
        return folder / "plan-train.json"

    def entry(folder: Path) -> Path:
        write_npz(folder / "e.npz", {"actions": np.zeros((2, 2), np.float32)})
        return folder / "e.npz"

    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = "# x_m, y_m, w_tr_right_m, w_tr_left_m\n" + "".join(
        f"{6 * np.cos(a):.4f}, {6 * np.sin(a):.4f}, 1.1, 1.1\n" for a in angle
    )
    return [
        Reader("end2race: dataset.json", part("dataset.json"), opened(0), True),
        Reader("end2race: calibration.json", part("calibration.json"), opened(0), True),
        Reader("end2race: data.csv", first("data.csv"), opened(3), True),
        Reader("end2race: LiDAR .bin", first("*.bin"), lambda p: read_points(p, 4)),
        Reader("end2race: camera PNG", first("*.png"), lambda p: read_image(p, 16, 8)),
        Reader("end2race: cache.json", in_cache("cache.json"), read_cache, True),
        Reader("end2race: cache shard index", in_cache("shard*.json"), read_cache, True),
        Reader("end2race: cache shard", in_cache("shard*.bin"), read_cache),
        Reader("end2race: plan of an export", plan, ExportPlan.read, True),
        Reader("end2race: the notes' cache .npz", entry, read_entry),
        Reader("end2race: centreline .csv", keeping("a_centerline.csv", circle), read_track, True),
    ]
