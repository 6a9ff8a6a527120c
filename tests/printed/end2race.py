"""The commands of end2race, on drives of eight frames."""

from pathlib import Path

import numpy as np

from printed.runner import Chain, step


def recordings(folder: Path) -> None:
    """Five clouds with their controls in the layouts that are imported."""
    rng = np.random.default_rng(0)
    rows = [f"{1 + i / 10},{i - 2}" for i in range(5)]
    (folder / "controls.csv").write_text("\n".join(["velocity,wheel_angle", *rows]) + "\n")
    for name in ("velodyne_points/data", "clouds", "success"):
        (folder / name).mkdir(parents=True)
    header = (
        "VERSION 0.7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        "WIDTH 20\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 20\nDATA binary\n"
    )
    beams = ",".join(f"lidar_{i}" for i in range(5))
    episode = [f"time,steer,desired_speed,{beams}"]
    for i in range(5):
        points = rng.uniform(-9, 9, (20, 4)).astype(np.float32)
        (folder / "velodyne_points/data" / f"{i:06d}.bin").write_bytes(points.tobytes())
        (folder / "clouds" / f"{i:06d}.pcd").write_bytes(header.encode() + points.tobytes())
        episode.append(f"{i / 10},{i / 10},{5 + i},1,2,3,4,5")
    (folder / "success" / "drive.csv").write_text("\n".join(episode) + "\n")


_DRIVER = "--max-steps 2 --batch-size 4"
_COLLECT = "--tracks 2 --drives 2 --frames 8"
_EXPORT = "end2race export-cache"
_KITTI = "end2race import kitti-bin --src velodyne_points/data --controls controls.csv --out"
_PCD = "end2race import pcd --src clouds --controls controls.csv --out"
_MEMORY = "--data_root DATA --cache_dir CACHE --memory_dir MEMORY --keys camera"
END2RACE = Chain(
    "end2race",
    (
        step(
            f"{_KITTI} DATA",
            "end2race import kitti-bin|pcd|f1tenth-csv|morai|bag",
            run=f"{_KITTI} K",
        ),
        step(f"{_PCD} DATA", run=f"{_PCD} P"),
        step(
            "end2race import f1tenth-csv --src success --out DATA",
            run="end2race import f1tenth-csv --src success --out F",
        ),
        step(
            "end2race sim-collect --out DIR",
            run=f"end2race sim-collect --out DATA {_COLLECT}",
        ),
        step(
            "end2race sim-collect --out DIR --split train",
            run=f"end2race sim-collect --out DRIVES --split train {_COLLECT}",
        ),
        step(run=f"end2race sim-collect --out DATA --split valid {_COLLECT} --seed 1"),
        step(run=f"end2race sim-collect --out DRIVES --split valid {_COLLECT} --seed 1"),
        step("end2race demo", plus="student_steps=2 tracks=1 --run-dir DEMO"),
        step("end2race validate-data"),
        step("end2race config show"),
        step("end2race doctor"),
        step(_EXPORT),
        step("end2race train-teacher", plus=_DRIVER),
        step("end2race train-student", plus=_DRIVER),
        step("end2race drive", plus="--tracks 1 --limit-s 1"),
        step("end2race train-teacher --data-root DRIVES --run-dir runs/teacher", plus=_DRIVER),
        step("end2race eval-teacher", plus="--teacher-ckpt runs/teacher --data-root DRIVES"),
        step(f"{_EXPORT} --data-root DRIVES --teacher-ckpt runs/teacher --cache-dir runs/cache"),
        step(
            f"{_EXPORT} --data-root DRIVES --teacher-ckpt runs/teacher --cache-dir runs/cache2 "
            "--jobs 2"
        ),
        step(
            "end2race train-student --data-root DRIVES --teacher-cache-dir runs/cache "
            "--label-fraction 0.1 --run-dir runs/student",
            plus=_DRIVER,
        ),
        step("end2race eval-student --data-root DRIVES --student-ckpt runs/student"),
        step(
            "end2race drive --ckpt runs/teacher --ckpt runs/student --video race.webp",
            plus="--tracks 1 --limit-s 1",
        ),
        step(
            run="end2race train-teacher --data-root DATA --run-dir runs/end2race/teacher",
            plus=_DRIVER,
        ),
        step(
            f"{_EXPORT} --data_root DATA --split train --teacher_ckpt runs/end2race/teacher "
            "--cache_dir CACHE --dtype fp16 --save_bev_feat --resume --verify"
        ),
        step(
            "torchrun --standalone --nproc_per_node=2 -m end2race train-teacher",
            plus=f"{_DRIVER} --run-dir runs/two",
        ),
        step(
            "torchrun --standalone --nproc-per-node=2 -m end2race train-teacher "
            "--data-root DRIVES --run-dir runs/teacher",
            plus=f"--archive {_DRIVER}",
        ),
        step("end2race cache inspect CACHE", "end2race cache inspect|verify|convert"),
        step("end2race cache verify CACHE"),
        step("end2race cache convert --npz-compat CACHE FOLDER"),
        step(
            "end2race cache convert FOLDER CACHE --data_root DATA",
            run="end2race cache convert FOLDER BACK --data_root DATA",
        ),
        step(f"end2race memory build {_MEMORY}", "end2race memory build|query|stats"),
        step("end2race memory stats --memory_dir MEMORY"),
        step("end2race memory query --memory_dir MEMORY --data_root DATA --split valid"),
    ),
    begin=recordings,
    small=lambda: {
        "end2race.embedded:TRACKS": {"train": 2, "valid": 1},
        "end2race.embedded:DRIVES": 2,
        "end2race.embedded:FRAMES": 8,
        "end2race.embedded:TEACHER_SETTINGS": ("train.max_steps=2",),
    },
)
