"""The commands of coopcyl, on images of 64 to 100 pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from printed.runner import Chain, step

_NETWORK = (
    "panorama.width=64 panorama.height=32 model.widths=[8,8,16] model.token_width=16 "
    "model.range_bins=12 train_params.warmup_steps=1 train_params.epochs=1 "
    "train_params.steps_per_epoch=2 train_params.global_batch=2 solver.hypotheses=50 gates=[]"
)


def coopcyl_sizes() -> dict[str, object]:
    """The embedded crossings and the town with a few small images."""
    from coopcyl import embedded

    town = {
        name: replace(options, scenarios=2, width=64, lidar=(8, 120))
        for name, options in embedded.TOWN_SPLITS.items()
    }
    return {
        "coopcyl.embedded:OPTIONS": replace(embedded.OPTIONS, scenarios=1, width=100),
        "coopcyl.embedded:TOWN_SPLITS": town,
        "coopcyl.demo:SETTINGS": ("name=demo", *_NETWORK.split()),
    }


def loose_images(folder: Path) -> None:
    """The rig file of one camera with its image, and the depth folder that OPV2V lacks."""
    from PIL import Image

    rig = "cameras:\n  - {name: front, image: f.png, fov_deg: 100, position: [2.5, 0, 1.0]}\n"
    (folder / "RIG").write_text(f"origin: [-0.5, 0, 1.9]\n{rig}")
    Image.fromarray(np.full((60, 80, 3), 50, np.uint8)).save(folder / "f.png")


COOPCYL = Chain(
    "coopcyl",
    (
        step("coopcyl demo"),
        *(step(f"coopcyl {name}") for name in ("baselines", "validate", "project", "preview")),
        *(step(f"coopcyl {name}") for name in ("viz", "lr", "config show", "doctor")),
        step("coopcyl preview --depth-aware"),
        step("coopcyl synth OUT", plus="--width 64"),
        step(run="coopcyl synth OPV2V --width 64 --scenarios 3 --least 2 --most 2"),
        step(run="coopcyl synth OPV2V --split validate --width 64 --seed 1 --least 2 --most 2"),
        step(run="coopcyl synth OPV2V --split test --width 64 --seed 2 --least 2 --most 2"),
        step("coopcyl validate --root OPV2V --split train"),
        step(
            "coopcyl validate --root DATA --split train --samples 50",
            run="coopcyl validate --root OPV2V --split train --samples 50",
        ),
        *(
            step(
                f"coopcyl {words}",
                run=f"coopcyl {words.replace('DATA', 'OPV2V').replace('DEPTH', 'OPV2V')}",
            )
            for words in (
                "validate --root DATA --split train --samples 8",
                "preview --root DATA dataset.depth_root=DEPTH --split train --frame 0",
                "viz --root DATA --split train --frame 0",
            )
        ),
        step(
            "coopcyl train --root OPV2V dataset.depth_root=DEPTH --run-dir runs/opv2v",
            run="coopcyl train --root OPV2V dataset.depth_root=OPV2V --run-dir runs/opv2v",
            plus=_NETWORK,
        ),
        step("coopcyl eval runs/opv2v --split test --ladder"),
        step("coopcyl render runs/opv2v --split test --frame 0"),
        step(
            "torchrun --standalone --nproc_per_node=4 -m coopcyl train --run-dir RUN",
            run="torchrun --standalone --nproc_per_node=2 -m coopcyl train --run-dir RUN",
            plus=_NETWORK,
        ),
        step(
            "torchrun --standalone --nproc-per-node=2 -m coopcyl train --root OPV2V "
            "--run-dir runs/opv2v",
            plus=f"--archive {_NETWORK}",
        ),
        step(
            "coopcyl train [KEY=VALUE or GROUP=NAME]...",
            run=f"coopcyl train loss=matching {_NETWORK}",
        ),
        *(step(f"coopcyl {name} RUN") for name in ("eval", "predict", "render", "report")),
        step("coopcyl render RUN --frame 0"),
        step("coopcyl parity RUN"),
        step(
            "coopcyl eval RUN --ladder",
            run="coopcyl eval RUN --root OPV2V --split test --ladder",
        ),
        step("coopcyl stitch RIG"),
        step("coopcyl cache FOLDER"),
    ),
    begin=loose_images,
    small=coopcyl_sizes,
)
