"""An export that is killed with SIGKILL at random moments and resumed each time.

A script, because a process that forks must have no threads: `killed_export.py FOLDER KILLS SEED`
exports once in peace into FOLDER/whole, then kills forked exports into FOLDER/killed, and prints
how often one was killed and how many windows each had left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from end2race.cache import export
from end2race.cache.export import Exporter
from end2race.cache.store import TeacherCache
from fake_teacher import FakeReader, FakeTeacher, info_for, window_keys

KEYS = window_keys(segments=8, frames=42)


def run(folder: Path, teacher: FakeTeacher) -> None:
    """Export all that is missing, in small shards."""
    info = info_for(teacher)
    if (folder / "cache.json").is_file():
        cache = TeacherCache.open(folder, info)
    else:
        cache = TeacherCache.create(folder, info)
    Exporter(teacher, FakeReader(KEYS), KEYS, 4).fill(cache)


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill and resume until the export has been killed `kills` times, then let it finish."""
    export.SHARD_WINDOWS = 8
    began = time.monotonic()
    run(folder / "whole", FakeTeacher())
    duration = time.monotonic() - began
    draw = random.Random(seed)
    killed, progress = 0, []
    while killed < kills:
        child = os.fork()
        if child == 0:
            try:
                run(folder / "killed", FakeTeacher())
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        time.sleep(draw.uniform(0, duration / 4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            progress.append(len(list((folder / "killed").glob("shard-*.json"))))
        else:
            if status:
                sys.exit("a resumed export failed")
            for path in (folder / "killed").iterdir():  # it got through: begin anew
                path.unlink()
            (folder / "killed").rmdir()
    run(folder / "killed", FakeTeacher())
    print(f"killed {killed} times, shards after each: {progress}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
