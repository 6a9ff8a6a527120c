"""Every thread under `torchrun`: two processes are one run. Tiny sizes; see docs/scale.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loom.checkpoint import Checkpoints
from loom.record import read_records

pytestmark = [pytest.mark.dist, pytest.mark.slow]

PREPARATION: dict[str, tuple[str, ...]] = {
    "featdistill": (
        "featdistill scene synth scene --width 28 --train 8 --test 4",
        "featdistill teacher fit --scene scene --width 28 --max-steps 20 gaussians=600 "
        "log_interval=10 --run-dir teacher",
    ),
    "coopcyl": (
        "coopcyl synth town --scenarios 2 --least 2 --most 2 --width 400 --depth npy "
        "--lidar-rings 4",
        "coopcyl synth town --split validate --scenarios 2 --least 2 --most 2 --width 400 "
        "--depth npy --lidar-rings 4",
    ),
    "pinpad": (),
    "maniflow_overlay": (
        "maniflow_overlay data synth episodes --episodes 2",
        "maniflow_overlay data convert episodes store --size 64x64",
    ),
    "end2race": (
        "end2race sim-collect --out drives --tracks 1 --drives 2 --frames 8 --camera 32x16",
        "end2race sim-collect --out drives --tracks 1 --drives 2 --frames 8 --camera 32x16 "
        "--split valid",
    ),
}
TRAINING = {
    "featdistill": "featdistill train data.scene=scene data.teacher=teacher data.width=28 "
    "student.grid_resolution=[3,3,3] student.steps_per_axis=48 student.occupancy_resolution=32 "
    "train.max_steps=6 train.rays=256 train.points=1024 feature_pipeline.rays=32 "
    "data.extra_poses=2 evaluation.frames=2 log_interval=1",
    "coopcyl": "coopcyl train --root town panorama.width=64 panorama.height=32 "
    "model.widths=[8,8,16] model.token_width=16 model.descriptor=8 model.range_bins=12 "
    "train_params.warmup_steps=2 train_params.global_batch=2 train_params.epochs=1 "
    "train_params.steps_per_epoch=3 dataset.val.max_sets_per_epoch=2 solver.hypotheses=50 "
    "log_interval=1 gates=[]",
    "pinpad": "pinpad train wm_only=true gates=[] updates=4 eval_every=4 log_every=1 prefill=400 "
    "time_limit=100 batch_size=4 batch_length=20",
    "maniflow_overlay": "maniflow_overlay train --store store --preset tiny --mode none --steps 4 "
    "--batch-size 4 log_every=1 val_every=2 checkpoint_every=2",
    "end2race": "end2race train-teacher --data-root drives --preset racing --max-steps 4 "
    "--batch-size 4 --seq-len 3",
}


def run(words: list[str], place: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("thread", sorted(TRAINING))
def test_two_processes_of_a_thread_are_one_run(tmp_path, thread):
    for line in PREPARATION[thread]:
        run(line.split(), tmp_path)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    run([*torchrun, *TRAINING[thread].split(), "--run-dir", "run"], tmp_path)
    folder = tmp_path / "run"
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "finished"
    assert (folder / "report.html").is_file()
    assert (folder / "log.txt").read_text(encoding="utf-8").count("[run] begins") == 1
    steps = [row["step"] for row in read_records(folder)]
    assert steps == sorted(set(steps))  # one process writes
    newest = Checkpoints(folder / "checkpoints").load_newest()
    assert newest is not None
    assert newest.manifest["world_size"] == 2
