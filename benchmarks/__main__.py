"""Every benchmark as one command: what this machine is, then what each measures on it.

    uv run python -m benchmarks                     # all, a quarter of an hour
    uv run python -m benchmarks --quick             # all at small sizes: that they run, no figures
    uv run python -m benchmarks --only core_loop coopcyl_stitch

A benchmark is a file of its own, run in a process of its own, and prints its sizes, medians and
ratios; this one adds the machine and the time that each took. Exit code 1 if one of them failed.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loom.native.toolchain import chosen_level
from loom.processors import usable_processors
from loom.provenance import machine

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """One file of this folder.

    Attributes:
        name: Of the file.
        what: What is compared.
        quick: Arguments at which it takes seconds.
        needs: A library that it is compared with.
        long: Trains for minutes, so it is run by name only.
    """

    name: str
    what: str
    quick: str = ""
    needs: str = ""
    long: bool = False


BENCHMARKS = (
    Benchmark("cli_help", "--help against import torch", "--turns 1"),
    Benchmark("core_loop", "what the loop and a checkpoint add to plain torch", "--turns 1"),
    Benchmark(
        "featdistill_mlp",
        "grouped tiny networks: native against three torch paths",
        "--points 4000 --repeats 1",
    ),
    Benchmark(
        "featdistill_raster",
        "gaussian rasteriser against its torch twin",
        "--gaussians 500 --size 40 --repeats 1",
    ),
    Benchmark("coopcyl_stitch", "panorama stitching against the notes'", "--repeats 1"),
    Benchmark("coopcyl_faults", "what each geometric fault costs in metres", "--pairs 2"),
    Benchmark("pinpad_env", "steps per second, single and batched", "--seconds 0.02"),
    Benchmark("pinpad_update", "updates of the world models", "--updates 1"),
    Benchmark("end2race_sim", "one frame of the simulator", "--frames 5"),
    Benchmark("end2race_ops", "pillars and splat against torch", "--rounds 1"),
    Benchmark(
        "end2race_cache",
        "teacher cache against .npz and HDF5",
        "--windows 60 --repeats 1",
        needs="h5py",
    ),
    Benchmark(
        "end2race_memory",
        "exact top-k against faiss",
        "--keys 500 --repeats 1",
        needs="faiss",
    ),
    Benchmark(
        "maniflow_overlay_drawing", "drawing against the literal loop", "--paths 5 --repeats 1"
    ),
    Benchmark(
        "maniflow_overlay_loader", "frame store against the notes'", "--frames 80 --repeats 1"
    ),
    Benchmark("maniflow_overlay_train", "a training step", "--presets tiny --repeats 1"),
    Benchmark("pinpad_planted", "planted boundaries", "--seeds 1 --seconds 1", long=True),
    Benchmark("end2race_appearance", "what unlabelled pairs are worth", long=True),
)
"""`featdistill_frame.py` is apart: it measures a student that the caller names."""


def described() -> str:
    """Return this machine in one line, as every figure depends on it."""
    import torch

    found = machine()
    return (
        f"{found['cpu']}, {usable_processors()} processors of this process, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, kernels for "
        f"{chosen_level()}, PyTorch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )


def run(benchmark: Benchmark, *, quick: bool) -> tuple[str, float]:
    """Run one benchmark, its output on the terminal; return how it ended, and its CPU-seconds."""
    if benchmark.needs and importlib.util.find_spec(benchmark.needs) is None:
        return f"left out: uv run --with {benchmark.needs}", 0.0
    words = [sys.executable, str(FOLDER / f"{benchmark.name}.py")]
    words += benchmark.quick.split() if quick else []
    before = os.times()
    code = subprocess.run(words, check=False).returncode
    after = os.times()
    spent = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return ("done" if code == 0 else f"exit code {code}"), spent


def main() -> None:
    """Run what is asked for and close with one table."""
    names = [each.name for each in BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks.")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="small sizes: that they run")
    given = parser.parse_args()
    chosen = [
        each for each in BENCHMARKS if (each.name in given.only if given.only else not each.long)
    ]
    print(f"{time.strftime('%Y-%m-%d %H:%M')}  {described()}", flush=True)
    if given.quick:
        print("--quick: small sizes and single runs, to see that they run; the figures say nothing")
    rows = []
    for benchmark in chosen:
        print(f"\n== {benchmark.name}: {benchmark.what}", flush=True)
        rows.append((benchmark.name, *run(benchmark, quick=given.quick)))
    print(f"\n{'benchmark':<26} {'CPU-s':>7}  ended")
    for name, ended, spent in rows:
        print(f"{name:<26} {spent:7.1f}  {ended}")
    sys.exit(any(ended.startswith("exit") for _, ended, _ in rows))


if __name__ == "__main__":
    main()
