"""The commands of maniflow_overlay, with policies of two updates."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from documents import ROOT

from printed.runner import Chain, Step, step

_POLICY = "--preset tiny --steps 2 --batch-size 4 log_every=1"


def pictures_and_cases(folder: Path) -> None:
    """A picture with its path, recorded drawings, answers of the earlier scripts, and a T5."""
    import pickle

    from PIL import Image

    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "PICTURE", "PNG")
    (folder / "PATH.json").write_text(json.dumps([[0.1, 0.2, 1], [0.8, 0.7, 0]]))
    cases = ROOT / "packages" / "maniflow_overlay" / "tests" / "overlay_cases.json"
    (folder / "CASES.json").write_bytes(cases.read_bytes())
    place = folder / "ROOT" / "stack" / "episode_00" / "paths"
    place.mkdir(parents=True)
    (place / "frame_0000.pkl").write_bytes(pickle.dumps([(0.1, 0.2, 1.0), (0.8, 0.7, 0.0)]))
    made = ROOT / "packages" / "maniflow_overlay" / "tests" / "small_t5.py"
    spec = importlib.util.spec_from_file_location("small_t5", made)
    assert spec
    assert spec.loader
    small_t5 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_t5)
    small_t5.write_t5(folder / "t5-small")


def _fake(port: int) -> str:
    return f"{sys.executable} -m maniflow_overlay paths serve-fake --port {port} --latency 0"


MANIFLOW = Chain(
    "maniflow_overlay",
    (
        step("maniflow-overlay doctor"),
        step("maniflow-overlay config show preset=parity"),
        step("maniflow-overlay overlay render PICTURE PATH.json OUT.png"),
        step("maniflow-overlay overlay check CASES.json"),
        step(
            "maniflow-overlay paths import-pickles ROOT PATHS.jsonl",
            run="maniflow-overlay paths import-pickles ROOT old.jsonl",
        ),
        step("maniflow-overlay data synth FOLDER", run="maniflow-overlay data synth EPISODES"),
        step("maniflow-overlay data extract-frames EPISODES FRAMES"),
        step("maniflow-overlay data extract-frames EPISODES frames"),
        Step(
            ("maniflow-overlay paths serve-fake",),
            plus="--port 18741 --latency 0",
            until="18741",
            stays=True,
        ),
        step(
            "maniflow-overlay paths generate FRAMES OUT --endpoint hamster=URL",
            run="maniflow-overlay paths generate FRAMES OUT "
            "--endpoint hamster=http://127.0.0.1:18741 --stride 64",
        ),
        step(
            "maniflow-overlay paths generate frames answers --endpoint "
            "hamster=http://node1:8000 --endpoint hamster=http://node1:8001 --stride 16",
            run="maniflow-overlay paths generate frames answers "
            "--endpoint hamster=http://127.0.0.1:18741 --stride 64",
        ),
        step("maniflow-overlay paths parse OUT PATHS.jsonl"),
        step(
            "maniflow-overlay overlay frames FRAMES PATHS.jsonl OUT",
            run="maniflow-overlay overlay frames FRAMES PATHS.jsonl DRAWN",
        ),
        step("maniflow-overlay paths parse answers paths.jsonl --hold frames"),
        step(
            "maniflow-overlay paths parse answers paths.jsonl --jobs 4",
            run="maniflow-overlay paths parse answers spread.jsonl --jobs 2",
        ),
        step("maniflow-overlay paths report PATHS.jsonl"),
        step("maniflow-overlay paths report paths.jsonl"),
        step(
            'maniflow-overlay servers up --command "... {port}"',
            run=f'maniflow-overlay servers up --command "{_fake(0)}" --port 18751'.replace(
                "--port 0", "--port {port}"
            ),
        ),
        step("maniflow-overlay servers status"),
        step("maniflow-overlay servers down"),
        step("maniflow-overlay data convert EPISODES STORE", plus="--size 64x64"),
        step("maniflow-overlay data inspect STORE"),
        step(
            "maniflow-overlay paths oracle EPISODES PATHS.jsonl",
            run="maniflow-overlay paths oracle EPISODES oracle.jsonl",
        ),
        step(
            "maniflow-overlay data attach-paths STORE PATHS.jsonl",
            run="maniflow-overlay data attach-paths STORE oracle.jsonl",
        ),
        step(
            "maniflow-overlay data convert EPISODES STORE --jobs 8",
            run="maniflow-overlay data convert EPISODES SPREAD --size 64x64 --jobs 2",
        ),
        step(
            "maniflow-overlay data attach-paths STORE paths.jsonl --jobs 8",
            run="maniflow-overlay data attach-paths SPREAD oracle.jsonl --jobs 2",
        ),
        step(run="maniflow-overlay data export-zarr STORE old.zarr"),
        step(
            "maniflow-overlay data import-zarr",
            run="maniflow-overlay data import-zarr old.zarr BACK --size 64x64",
        ),
        step(
            "maniflow-overlay train --store STORE --preset tiny --mode initial_current "
            "--fuse overlay",
            plus="--steps 2 --batch-size 4 --run-dir RUN",
        ),
        step(
            "maniflow-overlay train --store STORE --preset spatial --mode initial_current "
            "--fuse overlay --run-dir run",
            plus=_POLICY,
        ),
        step(
            "maniflow-overlay train --store STORE language=text text_encoder=t5-small",
            plus=f"{_POLICY} --run-dir TOLD",
        ),
        step(
            "maniflow-overlay train --store STORE --preset spatial language=text "
            "text_encoder=t5-small --run-dir run",
            run="maniflow-overlay train --store STORE language=text text_encoder=t5-small "
            f"--run-dir told {_POLICY}",
        ),
        step("maniflow-overlay status RUN"),
        step("maniflow-overlay status run"),
        step("maniflow-overlay report RUN"),
        step(
            "torchrun --nproc-per-node 2 -m maniflow_overlay train --store STORE --preset parity "
            "num_epochs=501 --run-dir run2",
            run="torchrun --nproc-per-node 2 -m maniflow_overlay train --store STORE --preset tiny "
            "num_epochs=1 --batch-size 4 log_every=1 --run-dir run2",
        ),
        step(
            "torchrun --standalone --nproc-per-node=2 -m maniflow_overlay train --store STORE "
            "--preset parity --run-dir runs/parity",
            plus=_POLICY,
        ),
        step("maniflow-overlay sim demo [OUT.png]", run="maniflow-overlay sim demo sim.png"),
        step(
            "maniflow-overlay sim collect [FOLDER]",
            run="maniflow-overlay sim collect table --episodes 3",
        ),
        step("maniflow-overlay demo", plus="--run-dir DEMO"),
        step(
            "maniflow-overlay eval matrix --policy RUN ...",
            run="maniflow-overlay eval matrix --policy DEMO/none --episodes 2 --run-dir MATRIX",
        ),
        step("maniflow-overlay eval report RUN", run="maniflow-overlay eval report MATRIX"),
    ),
    begin=pictures_and_cases,
    small=lambda: {
        "maniflow_overlay.embedded:EPISODES": 4,
        "maniflow_overlay.demo:STEPS": 2,
        "maniflow_overlay.demo:EPISODES": 2,
    },
)
