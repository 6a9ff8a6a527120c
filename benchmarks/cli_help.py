"""How long `--help` takes, beside `import torch` in a fresh process of the same interpreter.

Claim: each command's `--help` needs less than 0.7 of the time of `python -c "import torch"`. The
commands and the import take turns; figures are medians of the processes' CPU seconds (user and
system), which other load on the machine disturbs least.

    uv run python benchmarks/cli_help.py [--turns N]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

COMMANDS = ("loom", "featdistill", "coopcyl", "pinpad", "maniflow-overlay", "end2race")
CLAIM = 0.7


def cpu_seconds(command: list[str]) -> float:
    """Run a command to its end; return the CPU time of the process and its children."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return (
        after.children_user - before.children_user + after.children_system - before.children_system
    )


def main() -> None:
    """Measure in turns and print one row per command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=7, help="measurements of each command")
    turns = parser.parse_args().turns
    scripts = Path(sys.executable).parent
    commands = {name: [str(scripts / name), "--help"] for name in COMMANDS}
    commands["import torch"] = [sys.executable, "-c", "import torch"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        for name, command in commands.items():
            taken = cpu_seconds(command)
            if turn:  # the first turn warms the file cache
                seconds[name].append(taken)
    peer = median(seconds["import torch"])
    print(f"median of {turns} runs, CPU seconds; load {os.getloadavg()[0]:.1f}")
    print(f"{'import torch':<23} {peer:6.2f}")
    for name in COMMANDS:
        ours = median(seconds[name])
        verdict = "holds" if ours / peer < CLAIM else "MISSED"
        print(f"{name + ' --help':<23} {ours:6.2f}   {ours / peer:5.2f} of it   {verdict}")


if __name__ == "__main__":
    main()
