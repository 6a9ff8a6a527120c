"""Damage a file of every format in many ways, and print what the readers made of it.

    uv run scripts/fault_table.py --each 250

The table is the one in docs/reliability.md; exit code 1 if anything was neither read nor refused.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fault_readers import all_readers
from faults import Reader, damaged, judge
from hostile import BOMBS, memory_limit


def counted(reader: Reader, each: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Return how often a reader read and refused, and every failure in words."""
    found: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        path = reader.write(Path(folder))
        for done, content in damaged(path.read_bytes(), reader.text, each, seed):
            path.write_bytes(content)
            outcome = judge(reader, path)
            found[outcome if outcome in ("read", "refused") else "failed"] += 1
            if outcome not in ("read", "refused"):
                failures.append(f"{reader.name}, {done}: {outcome}")
    return found, failures


def bombed(readers: list[Reader]) -> tuple[Counter[str], list[str]]:
    """Return how often small files that claim to be huge were read and refused, and failures."""
    known = {reader.name: reader for reader in readers}
    found: Counter[str] = Counter()
    failures = []
    for bomb in BOMBS:
        with tempfile.TemporaryDirectory() as folder:
            path = known[bomb.reader].write(Path(folder))
            bomb.make(path)
            with memory_limit():
                outcome = judge(known[bomb.reader], path)
        found[outcome if outcome in ("read", "refused") else "failed"] += 1
        if outcome not in ("read", "refused"):
            failures.append(f"{bomb.reader}, {bomb.name}: {outcome}")
    return found, failures


def main() -> None:
    """Print the table in Markdown, then the failures."""
    parser = argparse.ArgumentParser(description="Damage files and count what readers do.")
    parser.add_argument("--each", type=int, default=250, help="random damages per format")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    total: Counter[str] = Counter()
    failures = []
    print("| reader | inputs | read | refused | failed |\n|---|---|---|---|---|")
    readers = all_readers()
    for reader in readers:
        found, wrong = counted(reader, given.each, given.seed)
        total += found
        failures += wrong
        print(_row(reader.name, found), flush=True)
    found, wrong = bombed(readers)
    total += found
    failures += wrong
    print(_row("bombs, all readers", found))
    print(_row("all", total))
    print("\n".join(failures), file=sys.stderr)
    sys.exit(1 if failures else 0)


def _row(name: str, found: Counter[str]) -> str:
    cells = (sum(found.values()), found["read"], found["refused"], found["failed"])
    return f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |"


if __name__ == "__main__":
    main()
