"""Appearance shift: what unlabelled LiDAR+camera pairs are worth to a camera student.

    uv run python benchmarks/end2race_appearance.py [--seeds 0 1 2] [--only bc kd bc-all]

The LiDAR teacher learns from the embedded dataset; a LiDAR is blind to colours. The camera dataset
has 200 drives on 25 other tracks, each in colours of its own; the expert's labels are used of two
drives only (76 windows), on another track for each seed. Students of equal length:

| condition | expert labels | teacher's answers |
|---|---|---|
| bc | 76 windows | none |
| bc-init | 76 windows | none, but it begins from the teacher's layers behind the view, as kd does |
| kd | 76 windows | on all windows |
| kd-action, kd-bevvec | 76 windows | as kd, with one term alone |
| bc-all | all windows (upper bound) | none |

Every driver then laps 8 tracks that no dataset has, in colours that none has. `blank` gives black
images to the kd student, or empty clouds to the teacher. What has been done is kept below --root
and not done again, so the script can be stopped and called again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from end2race.data.images import write_image
from end2race.driver import Driver
from end2race.embedded import default_dataset
from end2race.exporting import ExportSettings, export_cache
from end2race.figures import glance, in_a_row, paths
from end2race.film import side_by_side
from end2race.race_day import Setting, baselines, networks, race_day, write_results
from end2race.restore import restore
from end2race.sim.collect import Collection, collect
from end2race.training_run import run_student, run_teacher
from loom.drawing import print_table
from loom.evaluation.statistics import Interval, stratified_interval

ROOT = Path("runs/end2race-appearance")
TRACKS, DRIVES = {"train": 25, "valid": 1}, 8
SEQ_LEN = 3  # neighbouring frames look alike: shorter windows show more places for the same work
TEACHER_STEPS, STEPS = 200, 300
LABELLED_SHARE, STEER_WEIGHT = 0.125, 0.1
TERMS = ("action", "bevvec", "temporal")
CONDITIONS = ("teacher", "bc", "bc-init", "kd", "kd-action", "kd-bevvec", "bc-all")
DATA_SEED = 1


def camera_dataset(root: Path) -> Path:
    """Record the camera dataset, with other tracks and colours than the embedded one."""
    for split, tracks in TRACKS.items():
        if not (root / split).exists():
            collect(root, split, Collection(tracks=tracks, drives=DRIVES, seed=DATA_SEED), print)
    return root


def common(seed: int, steps: int) -> list[str]:
    """Return the overrides of every training."""
    return [
        f"seed={seed}",
        f"data.seq_len={SEQ_LEN}",
        f"train.max_steps={steps}",
        "train.validate_interval=null",  # laps decide
        "train.colour_mixing=0",  # colours come from the recordings alone
    ]


def settings(condition: str, seed: int, cache: Path) -> list[str]:
    """Return the overrides of one student."""
    chosen = common(seed, STEPS)
    if condition != "bc-all":
        names = ", ".join(f"segment_{DRIVES * seed + drive:04d}" for drive in range(2))
        chosen.append(f"labelled_segments=[{names}]")
    if condition not in ("bc", "bc-all"):
        chosen += [f"init_path={cache.parent / 'teacher-0'}", "init_strict=false"]
    if condition.startswith("kd"):
        chosen += [f"kd.cache_dir={cache}", f"labelled_share={LABELLED_SHARE}"]
        chosen.append(f"loss.steer_weight={STEER_WEIGHT}")
        _, _, term = condition.partition("-")
        chosen += [f"kd.{other}_weight=0" for other in TERMS if term and other != term]
    return chosen


def drive_and_keep(path: Path, checkpoint: Path) -> None:
    """Let a model drive, with its eyes and without, and keep every race."""
    restored = restore(checkpoint)
    driver = Driver(restored.model, restored.file.seq_len)
    heats = race_day({"seeing": driver}, Setting(), say=print)
    heats |= race_day({"blank": driver}, Setting(), blank=True, say=print)
    write_results(path, heats)


def work(root: Path, conditions: Sequence[str], seeds: Sequence[int]) -> None:
    """Do whatever has no result yet."""
    lidar_data, camera_data = default_dataset(print), camera_dataset(root / "data")
    for seed in seeds:
        for condition in conditions:
            run, laps = root / f"{condition}-{seed}", root / f"{condition}-{seed}/laps.json"
            if laps.is_file():
                continue
            began = time.process_time()
            if condition == "teacher":
                chosen, flags = common(seed, TEACHER_STEPS), {"data.root": lidar_data}
                run_teacher(None, chosen, flags, directory=run, archive=True)
            else:
                cache = root / "cache"
                source = ExportSettings(camera_data, root / "teacher-0", cache, resume=True)
                export_cache(source, print)
                flags = {"data.root": camera_data}
                run_student(
                    None, settings(condition, seed, cache), flags, directory=run, archive=True
                )
            drive_and_keep(laps, run)
            print(f"{run.name}: {time.process_time() - began:.0f} CPU-seconds", flush=True)
    if not (root / "baselines.json").is_file():
        write_results(root / "baselines.json", race_day(baselines(), Setting()))


def table(root: Path) -> None:
    """Print laps by seed, and intervals over tracks and seeds."""
    rng = np.random.default_rng(0)
    finished: dict[str, np.ndarray] = {}
    rows = []
    for condition in CONDITIONS:
        files = sorted(root.glob(f"{condition}-?/laps.json"))
        found = [json.loads(path.read_text()) for path in files]
        for kind in ("seeing", "blank") if found else ():
            name = condition if kind == "seeing" else f"{condition}, blank"
            finished[name] = np.array(
                [[race["completed"] for race in each[kind]["races"]] for each in found], float
            )
            progress = np.mean([each[kind]["score"]["progress"] for each in found])
            laps = finished[name].sum(axis=1).astype(int)
            rows.append(
                (
                    name,
                    " ".join(f"{lap}/8" for lap in laps),
                    shown(stratified_interval(finished[name], rng, aggregate=np.mean)),
                    round(float(progress), 3),
                )
            )
    if (root / "baselines.json").is_file():
        for name, each in json.loads((root / "baselines.json").read_text()).items():
            score = each["score"]
            rows.append((name, f"{score['laps']}/8", None, round(score["progress"], 3)))
    print_table(("driver", "laps by seed", "share, 95 %", "progress"), rows)
    differences(finished, rng)


def differences(finished: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
    """Print what each condition gains over bc on the same tracks and seeds."""
    for name in ("bc-init", "kd", "kd-action", "kd-bevvec", "bc-all"):
        if name in finished and "bc" in finished:
            seeds = min(len(finished[name]), len(finished["bc"]))
            gain = finished[name][:seeds] - finished["bc"][:seeds]
            print(f"{name} - bc: {shown(stratified_interval(gain, rng, aggregate=np.mean))}")


def pictures(root: Path, folder: Path) -> None:
    """Write the pictures of the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = Setting(tracks=1).entries()[0]
    eyes = glance(moment, root / "teacher-0", root / "kd-0")
    write_image(folder / "eyes.png", in_a_row(eyes))
    drivers = networks([root / "bc-0", root / "kd-0"], "window")
    heats = race_day(drivers, Setting(), film="kd-0", say=print)
    drawn = [picture for number in range(4) for _, picture in paths(heats, number)]
    rows = [side_by_side(_one_width(drawn[which::2])) for which in range(2)]
    write_image(folder / "laps.png", np.concatenate(rows))
    film = heats["kd-0"].film
    if film is not None:
        write_image(folder / "race.png", film.frames[len(film.frames) // 2])


def _one_width(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Put maps on paper of one width, so that rows of them stand in columns."""
    paper = [np.full((drawn.shape[0], 260, 3), 255, np.uint8) for drawn in maps]
    for sheet, drawn in zip(paper, maps, strict=True):
        sheet[:, : min(260, drawn.shape[1])] = drawn[:, :260]
    return paper


def shown(interval: object) -> str | None:
    """Write an interval."""
    if not isinstance(interval, Interval):
        return None
    return f"{interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def main() -> None:
    """Do what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--pictures", type=Path, help="write the documentation's pictures here")
    arguments = parser.parse_args()
    work(arguments.root, arguments.only, arguments.seeds)
    table(arguments.root)
    if arguments.pictures is not None:
        pictures(arguments.root, arguments.pictures)


if __name__ == "__main__":
    main()
