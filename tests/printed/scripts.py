"""Scripts of the repository and benchmarks, at their smallest sizes."""

import shutil
from pathlib import Path

from documents import ROOT

from printed.runner import Chain, step


def a_small_repository(folder: Path) -> None:
    """A copy of what writes into the repository that it stands in."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "new_thread.py", folder / "scripts")
    (folder / "packages").mkdir()


SCRIPTS = Chain(
    "scripts and benchmarks",
    (
        step('scripts/new_thread.py wordcount "Count words in a stream"'),
        step("scripts/fault_table.py --each 120", plus="--each 1"),
        step(
            "python -m benchmarks --quick",
            "python benchmarks/coopcyl_faults.py",
            "python benchmarks/coopcyl_stitch.py",
        ),
        step("python -m benchmarks --only core_loop coopcyl_stitch", plus="--quick"),
    ),
    begin=a_small_repository,
)
