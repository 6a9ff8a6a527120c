"""Appearance shift: what unlabelled LiDAR+camera pairs are worth to a camera student.

    uv run python benchmarks/end2race_appearance.py [--seeds 0 1 2] [--only bc kd bc-all]

For each seed a LiDAR teacher learns from the embedded dataset; a LiDAR is blind to colours. The
camera dataset has 200 drives on 25 other tracks, each in colours of its own; the expert's labels
are used of two drives only (76 windows), on another track for each seed. Students of equal length:

| condition | expert labels | teacher's answers |
|---|---|---|
| bc | 76 windows | none |
| bc-init | 76 windows | none, but it begins from the teacher's layers behind the view, as kd does |
| kd | 76 windows | on all windows |
| kd-action, kd-bevvec, kd-temporal | 76 windows | as kd, with one term alone |
| kd-memory | 76 windows | none of this dataset: recalled from a memory of the embedded one |
| bc-all | all windows (upper bound) | none |

Every driver then laps 16 tracks that no dataset has, in colours that none has. `blank` gives black
images to a student, or empty clouds to the teacher. The settings of kd were chosen on other tracks
and labels (tracks of seeds 0 and 100, labels of drives 0, 1, 40, 41, 48, 49 of another camera
dataset). What has been done is kept below --root and not done again, so the script can be stopped
and called again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from end2race.commands.memory import Keys, build
from end2race.data.batches import BatchReader
from end2race.data.dataset import open_dataset
from end2race.data.images import write_image
from end2race.data.windows import windows
from end2race.driver import Driver
from end2race.driving import sensor_of
from end2race.embedded import default_dataset
from end2race.evaluate import copycat, open_loop, open_loop_errors
from end2race.exporting import ExportSettings, export_cache
from end2race.figures import glance, in_a_row, paths
from end2race.film import side_by_side
from end2race.race_day import Setting, baselines, networks, race_day, write_results
from end2race.restore import restore
from end2race.sim.closed_loop import unseen_tracks
from end2race.sim.collect import Collection, collect
from end2race.training_run import run_student, run_teacher
from loom.drawing import print_table
from loom.files import read_json, write_json

ROOT = Path("runs/end2race-appearance")
TRACKS, DRIVES = {"train": 25, "valid": 1}, 8
SEQ_LEN = 3  # neighbouring frames look alike: shorter windows show more places for the same work
TEACHER_STEPS, STEPS = 200, 300
LABELLED_SHARE, STEER_WEIGHT = 0.125, 0.1
TERMS = ("action", "bevvec", "temporal")
ONE_TERM = tuple(f"kd-{term}" for term in TERMS)
CONDITIONS = ("teacher", "bc", "kd", "bc-all", "kd-memory", *ONE_TERM, "bc-init")
DATA_SEED, DRIVE_SEED, DRIVE_TRACKS = 2, 1, 16


def races() -> Setting:
    """Return the tracks to drive: none of them was seen in any choice."""
    return Setting(unseen_tracks(DRIVE_TRACKS, DRIVE_SEED), (DRIVE_SEED,))


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


def settings(condition: str, seed: int, root: Path) -> list[str]:
    """Return the overrides of one student."""
    chosen = common(seed, STEPS)
    if condition != "bc-all":
        names = ", ".join(f"segment_{DRIVES * seed + drive:04d}" for drive in range(2))
        chosen.append(f"labelled_segments=[{names}]")
    if condition not in ("bc", "bc-all"):
        chosen += [f"init_path={root / f'teacher-{seed}'}", "init_strict=false"]
    if condition.startswith("kd"):
        chosen.append(f"labelled_share={LABELLED_SHARE}")
        chosen.append(f"loss.steer_weight={STEER_WEIGHT}")
    if condition == "kd-memory":
        chosen += ["kd.memory=topk", f"kd.memory_dir={root / f'memory-{seed}'}"]
    elif condition.startswith("kd"):
        chosen.append(f"kd.cache_dir={root / f'cache-{seed}'}")
    if condition in ONE_TERM:
        chosen += [f"kd.{term}_weight=0" for term in TERMS if f"kd-{term}" != condition]
    return chosen


def answers(condition: str, seed: int, root: Path, lidar_data: Path, camera_data: Path) -> None:
    """Ask the seed's teacher about the drives that a condition learns from."""
    teacher = root / f"teacher-{seed}"
    if condition == "kd-memory":
        cache, memory = root / f"cache-embedded-{seed}", root / f"memory-{seed}"
        export_cache(ExportSettings(lidar_data, teacher, cache, resume=True), print)
        if not memory.exists():
            build(data_root=lidar_data, cache_dir=cache, memory_dir=memory, keys=Keys.CAMERA)
    elif condition.startswith("kd"):
        cache = root / f"cache-{seed}"
        export_cache(ExportSettings(camera_data, teacher, cache, resume=True), print)


def drive_and_keep(run: Path, data: Path) -> None:
    """Let a model drive, with its eyes and without, keep every race and the open-loop errors."""
    restored = restore(run)
    camera = sensor_of(restored.model) == "camera"
    dataset = open_dataset(data, ("valid",))
    listed = windows(dataset, "valid", restored.file.seq_len)
    reader = BatchReader(dataset, listed, images=camera, points=not camera)
    mean = open_loop_errors(copycat, reader, 256).target_mean
    write_json(run / "open_loop.json", open_loop(restored.model, reader, mean).to_json())
    driver = Driver(restored.model, restored.file.seq_len)
    heats = race_day({"seeing": driver}, races(), say=print)
    heats |= race_day({"blank": driver}, races(), blank=True, say=print)
    write_results(run / "laps.json", heats)


def work(root: Path, conditions: Sequence[str], seeds: Sequence[int]) -> None:
    """Do whatever has no result yet."""
    lidar_data, camera_data = default_dataset(print), camera_dataset(root / "data")
    for condition in conditions:
        for seed in seeds:
            run = root / f"{condition}-{seed}"
            if (run / "laps.json").is_file():
                continue
            began = time.process_time()
            if condition == "teacher":
                chosen, flags = common(seed, TEACHER_STEPS), {"data.root": lidar_data}
                run_teacher(None, chosen, flags, directory=run, archive=True)
            else:
                answers(condition, seed, root, lidar_data, camera_data)
                chosen, flags = settings(condition, seed, root), {"data.root": camera_data}
                run_student(None, chosen, flags, directory=run, archive=True)
            drive_and_keep(run, camera_data)
            print(f"{run.name}: {time.process_time() - began:.0f} CPU-seconds", flush=True)
    if not (root / "baselines.json").is_file():
        write_results(root / "baselines.json", race_day(baselines(), races()))


def table(root: Path) -> None:
    """Print laps by seed, and intervals over tracks and seeds."""
    rng = np.random.default_rng(0)
    finished: dict[str, np.ndarray] = {}
    rows = []
    for condition in CONDITIONS:
        runs = sorted(path.parent for path in root.glob(f"{condition}-?/laps.json"))
        found = [json.loads((run / "laps.json").read_text()) for run in runs]
        judged = [read_json(run / "open_loop.json") for run in runs]
        for kind, model in (("seeing", "model"), ("blank", "blanked")) if found else ():
            name = condition if kind == "seeing" else f"{condition}, blank"
            finished[name] = np.array(
                [[race["completed"] for race in each[kind]["races"]] for each in found], float
            )
            rows.append(
                (
                    name,
                    " ".join(str(int(laps)) for laps in finished[name].sum(axis=1)),
                    share(finished[name], rng),
                    round(float(np.mean([e[kind]["score"]["progress"] for e in found])), 3),
                    round(float(np.mean([e["drivers"][model]["steer_mse"] for e in judged])), 2),
                    " ".join(f"{e['blanked_speed_unexplained']:.2f}" for e in judged)
                    if kind == "blank"
                    else None,
                )
            )
    if (root / "baselines.json").is_file():
        for name, each in json.loads((root / "baselines.json").read_text()).items():
            score = each["score"]
            rows.append((name, score["laps"], None, round(score["progress"], 3), None, None))
    columns = (f"laps of {DRIVE_TRACKS} by seed", "share, 95 %", "progress", "steer MSE")
    print_table(("driver", *columns, "speed unexplained"), rows)
    differences(finished, rng)


def differences(finished: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
    """Print what each condition gains over another on the same tracks and seeds."""
    pairs = [(name, "bc") for name in CONDITIONS[2:]]
    pairs += [(name, "kd") for name in ("kd-memory", *ONE_TERM, "bc-all")]
    for name, base in pairs:
        if name in finished and base in finished:
            seeds = min(len(finished[name]), len(finished[base]))
            gain = finished[name][:seeds] - finished[base][:seeds]
            print(f"{name} - {base}: {share(gain, rng)}")


def pictures(root: Path, folder: Path) -> None:
    """Write the pictures of the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = races().entries()[0]
    eyes = glance(moment, root / "teacher-0", root / "kd-0")
    write_image(folder / "eyes.png", in_a_row(eyes))
    drivers = networks([root / "bc-0", root / "kd-0"], "window")
    heats = race_day(drivers, races(), film="kd-0", say=print)
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


def share(values: np.ndarray, rng: np.random.Generator, resamples: int = 5000) -> str:
    """Write the mean of seeds x tracks with its interval; both are drawn anew in each resample."""
    seeds, tracks = values.shape
    chosen_seeds = rng.integers(seeds, size=(resamples, seeds, 1))
    chosen_tracks = rng.integers(tracks, size=(resamples, 1, tracks))
    drawn = values[chosen_seeds, chosen_tracks].mean(axis=(1, 2))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


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
