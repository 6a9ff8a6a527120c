"""The commands of featdistill, on bricks of 28 pixels."""

from functools import partial
from pathlib import Path
from typing import Any

from printed.runner import Chain, Step, step

_STUDENT = (
    "student.grid_resolution=[3,3,3] student.steps_per_axis=48 student.occupancy_resolution=32 "
    "train.max_steps=12 train.rays=256 train.points=1024 feature_pipeline.rays=32 "
    "data.extra_poses=2 evaluation.frames=2 evaluation.interval=6 log_interval=4 prune.window=10"
)
_LEGO = "data.scene=LEGO data.teacher=runs/lego-teacher data.width=28"  # jobs have no small bricks
_TEACHER = "gaussians=300 start.resolution=12 train.max_steps=6 log_interval=2"


def sizes() -> dict[str, Any]:
    """The embedded bricks, their teacher and the demo in small."""
    from featdistill.data.bricks import BrickScene

    return {
        "featdistill.data.bricks:BrickScene": partial(BrickScene, width=28, train=6, test=2),
        "featdistill.demo:SETTINGS": ("name=demo", *_STUDENT.split()),
        "featdistill.embedded:TEACHER_SETTINGS": ("name=bricks-teacher", *_TEACHER.split()),
        "featdistill.supervision:POINT_POOL": 20_000,
    }


def configurations(folder: Path) -> None:
    """A configuration, and one with a key that was removed."""
    (folder / "C").write_text("train: {max_steps: 9}\n")
    (folder / "OLD.yaml").write_text("data: {freeze_student: 10}\ntrain: {max_steps: 9}\n")


FEATDISTILL = Chain(
    "featdistill",
    (
        step(run="featdistill scene synth LEGO --width 28 --train 6 --test 2"),
        step("featdistill scene synth", plus="OTHER --width 20 --train 3 --test 1"),
        step("featdistill config show"),
        step("featdistill teacher config show"),
        step("featdistill teacher schedule"),
        step("featdistill doctor"),
        step("featdistill teacher fit", plus=f"{_TEACHER} name=first"),
        step(
            "featdistill teacher fit --scene LEGO --width 200 --run-dir runs/lego-teacher",
            plus=f"--width 28 {_TEACHER}",
        ),
        step(
            run="featdistill teacher fit --scene LEGO --width 28 start.model=runs/lego-teacher "
            f"{_TEACHER} gaussians=320 train.lr.scale=0.1 name=second"
        ),
        step(
            "featdistill train data.scene=LEGO data.teacher=runs/lego-teacher data.width=200 "
            "student.grid_resolution=16 train.max_steps=6300 --run-dir runs/lego-student",
            plus=f"data.width=28 {_STUDENT}",
        ),
        step(
            "torchrun --standalone --nproc-per-node=2 -m featdistill train data.scene=SCENE "
            "data.teacher=TEACHER --run-dir runs/student",
            run="torchrun --standalone --nproc-per-node=2 -m featdistill train data.scene=LEGO "
            "data.teacher=runs/lego-teacher --run-dir runs/student",
            plus=f"data.width=28 {_STUDENT}",
        ),
        step("featdistill demo", code=3),  # five CPU-seconds miss the gates
        step("featdistill train [KEY=VALUE]...", run=f"featdistill train --run-dir RUN {_STUDENT}"),
        step("featdistill report runs/lego-student"),
        step("featdistill schedule"),
        step(
            "featdistill train --config C --max-steps N",
            run=f"featdistill train --config C --max-steps 2 --run-dir short {_STUDENT}",
        ),
        step("featdistill archive RUN", run="featdistill archive short"),
        step("featdistill migrate OLD.yaml NEW.yaml", "featdistill migrate"),
        step("featdistill shell", plus="--command true"),
        step("featdistill report RUN"),
        step("featdistill eval run RUN"),
        step("featdistill gate RUN", code=3),
        step("featdistill diagnose RUN"),
        step(
            "featdistill render --checkpoint RUN",
            "featdistill render",
            plus="--output-dir A --store-rgba",
        ),
        step(run="featdistill render --checkpoint RUN --output-dir B --store-rgba"),
        step("featdistill eval compare A B", run="featdistill eval compare A/renders B/renders"),
        step(
            "featdistill eval pipeline RENDERS --teacher-renders DIR",
            run="featdistill eval pipeline A --teacher-renders RUN/teacher",
        ),
        step(
            "featdistill render --checkpoint RUN --video FILE.webp",
            plus="--video-frames 3",
        ),
        step("featdistill export RUN FILE.safetensors"),
        step("featdistill export RUN FILE.onnx"),
        Step(("featdistill view RUN",), plus="--port 0", until="http://"),
        step("featdistill study", plus=f"--seeds 0,1 {_LEGO} {_STUDENT} train.max_steps=2"),
        step(
            "featdistill study --root runs/lego-study data.scene=LEGO "
            "data.teacher=runs/lego-teacher data.width=200 train.max_steps=2000",
            plus=f"--seeds 0 {_STUDENT} data.width=28 train.max_steps=2",
        ),
    ),
    begin=configurations,
    small=sizes,
)
