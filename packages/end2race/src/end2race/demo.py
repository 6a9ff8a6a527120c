"""The whole job in the simulator: collect, teach, cache, distil, drive, and one page about it.

The student with a teacher (`KD`) and the one without (`BC`) have the expert's labels of the same
two drives. The first sees the teacher's answers on all the others besides, which differ in colours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from loom.config import Config
from loom.drawing import print_table
from loom.film import write_film
from loom.report import Report
from loom.report_run import run_report
from loom.run import Run
from pydantic import Field

from end2race.driver import Driver
from end2race.embedded import default_dataset, default_teacher
from end2race.exporting import ExportSettings, export_cache
from end2race.figures import glance, lap_matrix, paths, strip
from end2race.race_day import Heat, Setting, baselines, race_day, scores, write_results
from end2race.sim.kernels import CONTROL_HZ
from end2race.sim.score import COLUMNS, score_rows
from end2race.training_run import OPEN_LOOP_FILE, run_student

LABELLED = ("segment_0000", "segment_0001")
ORDER = ("copycat", "constant", "BC", "KD", "teacher", "expert")
OPEN_LOOP_COLUMNS = ("steer_mse", "speed_mse")


class DemoConfig(Config):
    """What can be changed about the demo."""

    name: str = "demo"
    seed: int = Field(0, ge=0)
    student_steps: int = Field(300, ge=1, description="updates of each student")
    tracks: int = Field(8, ge=1, description="unseen tracks to drive")


def run_demo(
    overrides: Sequence[str] | None, directory: Path | None, *, archive: bool = False
) -> None:
    """Run the demo; it prints the table of laps and the path of its page."""
    began = time.process_time()
    with Run.open(
        "end2race", DemoConfig, None, overrides, directory=directory, archive=archive
    ) as run:
        data = default_dataset(run.info)
        teacher = default_teacher(run.info)
        cache = run.path("cache")
        export_cache(ExportSettings(data, teacher, cache), run.info)
        students = train_students(run, data, teacher, cache)
        heats = hold_races(run, {"teacher": teacher, **students})
        spent = f"{time.process_time() - began:.0f} CPU-seconds in all"
        run.info(f"[demo] {spent}")
    page = write_report(run.dir, heats, teacher, students)
    print_table(COLUMNS, score_rows(scores(heats)))
    typer.echo(f"video:  {run.dir / 'race.webp'}")
    typer.echo(f"report: {page}")


def train_students(run: Run[DemoConfig], data: Path, teacher: Path, cache: Path) -> dict[str, Path]:
    """Train a student by itself and one with the teacher; return their runs.

    The taught one begins from the teacher's layers behind the view.
    """
    settings = [
        f"seed={run.config.seed}",
        f"train.max_steps={run.config.student_steps}",
        f"labelled_segments=[{', '.join(LABELLED)}]",
        "train.colour_mixing=0",  # colours come from the recordings alone
    ]
    taught = [
        f"kd.cache_dir={cache}",
        f"init_path={teacher}",
        "init_strict=false",
    ]
    students = {}
    for name, own in (("BC", []), ("KD", taught)):
        run.info(f"[demo] the student {'with' if own else 'without'} a teacher ({name})")
        students[name] = run_student(
            None, [*settings, *own], {"data.root": data}, directory=run.path(name.lower())
        )
    return students


def hold_races(run: Run[DemoConfig], trained: dict[str, Path]) -> dict[str, Heat]:
    """Let everybody drive; write the results and the video of the taught student."""
    drivers = {name: Driver.load(path) for name, path in trained.items()} | baselines()
    heats = race_day(
        {name: drivers[name] for name in ORDER},
        Setting(tracks=run.config.tracks),
        film="KD",
        say=run.info,
    )
    write_results(run.path("laps.json"), heats)
    film = heats["KD"].film
    if film is not None:
        write_film(run.path("race.webp"), film.frames, CONTROL_HZ, quality=60)
    return heats


def write_report(
    directory: Path, heats: dict[str, Heat], teacher: Path, students: dict[str, Path]
) -> Path:
    """Write the demo's page and return its path."""

    def judgement(report: Report) -> None:
        report.heading("Laps on tracks and in colours that nobody has seen")
        report.table(COLUMNS, score_rows(scores(heats)))
        report.text(
            "BC and KD have the expert's labels of two drives. KD also has the LiDAR teacher's "
            "answers on all the other drives, each in colours of its own, for which no label is "
            "needed, and begins from the teacher's layers behind the view. The interval is "
            "Wilson's for the share of laps; a race ends at the wall."
        )
        tracks = [result.track for result in heats["expert"].results]
        report.table(("driver", *tracks), lap_matrix(heats), "lap time, or how far it came")
        report.heading("One race").pictures(paths(heats, 0), columns=3)
        film = heats["KD"].film
        if film is not None:
            report.text("The taught student; race.webp beside this page is the whole race.")
            report.pictures(strip(film), columns=1)
        report.heading("The same moment through all eyes")
        start = Setting(tracks=1).entries()[0]
        report.pictures(glance(start, teacher, students["KD"]), columns=4)
        report.heading("Open loop, on the validation windows")
        rows = open_loop_rows({"teacher": teacher, **students})
        report.table(("driver", *OPEN_LOOP_COLUMNS), rows)
        report.text(
            "Mean squared errors in squared degrees and (m/s)². The copycat repeats the last wheel "
            "angle and the present speed: what looks good here need not drive."
        )

    return run_report(directory, judgement).write(directory / "report.html")


def open_loop_rows(runs: dict[str, Path]) -> list[tuple[Any, ...]]:
    """Return the open-loop errors of trained drivers, and of the trivial ones once."""
    rows: dict[str, tuple[Any, ...]] = {}
    for name, run in runs.items():
        found = json.loads((run / OPEN_LOOP_FILE).read_text())["drivers"]
        for driver, errors in found.items():
            shown = name if driver == "model" else f"{name}, blanked"
            shown = driver if driver in ("copycat", "constant") else shown
            rows.setdefault(shown, (shown, *(errors[key] for key in OPEN_LOOP_COLUMNS)))
    return list(rows.values())
