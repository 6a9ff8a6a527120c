"""Keep the versions of every dependency pinned without recording where they come from.

`uv.lock` names the addresses of the index that it was made with, so it is not committed. Two files
are: the `constraint-dependencies` in the root `pyproject.toml`, which every `uv run` obeys, and
`requirements.lock`, the same versions with hashes.

    uv run scripts/pins.py --write     resolve afresh and write both; takes no release younger than
                                       a week, which mirrors may not have yet
    uv run scripts/pins.py --check     resolve under the pins and compare; exit code 1 if they
                                       differ
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "requirements.lock"
BEGIN = "# pins: written by scripts/pins.py --write"
END = "# end of pins"
BLOCK = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n", re.DOTALL)
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[^\s;\"\\]+)", re.MULTILINE)
ADDRESS = re.compile(r"https?://|file://|--(extra-)?index-url|--find-links")
EXPORT = [
    "export",
    *("--all-packages", "--all-groups", "--all-extras", "--no-emit-workspace"),
    *("--no-header", "--no-annotate", "--format", "requirements-txt", "--quiet"),
]


def uv(folder: Path, *arguments: str) -> str:
    """Run uv in a folder, apart from the environment that this script itself runs in."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    done = subprocess.run(
        ["uv", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"uv {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def copy_manifests(folder: Path, pyproject: str) -> None:
    """Lay out just enough of the workspace for uv to resolve it."""
    (folder / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    for manifest in sorted(ROOT.glob("packages/*/pyproject.toml")):
        target = folder / manifest.relative_to(ROOT)
        target.parent.mkdir(parents=True)
        shutil.copy(manifest, target)


def resolve(pyproject: str, *options: str) -> tuple[str, str]:
    """Resolve the workspace; return the export with hashes and the one without."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_manifests(folder, pyproject)
        uv(folder, "lock", *options)
        return uv(folder, *EXPORT, *options), uv(folder, *EXPORT, *options, "--no-hashes")


def with_pins(pyproject: str, plain: str) -> str:
    """Return the root manifest with the pins of a plain export."""
    lines = [line for line in plain.splitlines() if PIN.match(line)]
    rows = "".join(f'    "{line.strip()}",\n' for line in lines)
    block = f"\n{BEGIN}\n[tool.uv]\nconstraint-dependencies = [\n{rows}]\n{END}\n"
    return BLOCK.sub("\n", pyproject).rstrip("\n") + "\n" + block


def versions(text: str) -> dict[str, set[str]]:
    """Return the versions that a text pins, by package."""
    found: dict[str, set[str]] = {}
    for match in PIN.finditer(text):
        found.setdefault(match["name"], set()).add(match["version"])
    return found


def pinned_in_manifest(pyproject: str) -> dict[str, set[str]]:
    """Return the versions in the manifest's block of constraints."""
    block = BLOCK.search(pyproject)
    return versions(block[0].replace('    "', "")) if block else {}


def differences(was: dict[str, set[str]], now: dict[str, set[str]]) -> list[str]:
    """Name each package whose pinned versions differ."""

    def shown(pins: dict[str, set[str]], name: str) -> str:
        return ", ".join(sorted(pins.get(name, set()))) or "absent"

    names = sorted(was.keys() | now.keys())
    return [f"{n}: {shown(was, n)} -> {shown(now, n)}" for n in names if was.get(n) != now.get(n)]


def write() -> None:
    """Resolve without the old pins and write the new ones."""
    bare = BLOCK.sub("\n", PYPROJECT.read_text(encoding="utf-8"))
    a_week_ago = datetime.now(UTC).date() - timedelta(days=7)
    hashed, plain = resolve(bare, "--exclude-newer", a_week_ago.isoformat())
    PYPROJECT.write_text(with_pins(bare, plain), encoding="utf-8")
    LOCK.write_text(hashed, encoding="utf-8")
    print(f"pinned {len(versions(plain))} packages in pyproject.toml and requirements.lock")


def check() -> int:
    """Compare pyproject.toml, requirements.lock and what uv resolves under them."""
    pyproject = PYPROJECT.read_text(encoding="utf-8")
    lock = LOCK.read_text(encoding="utf-8")
    hashed, _ = resolve(pyproject)
    complaints = [
        f"pyproject.toml against requirements.lock: {line}"
        for line in differences(pinned_in_manifest(pyproject), versions(lock))
    ]
    complaints += [
        f"requirements.lock against uv's resolution: {line}"
        for line in differences(versions(lock), versions(hashed))
    ]
    if not complaints and lock != hashed:
        complaints.append("requirements.lock differs from uv's export in hashes or markers")
    if ADDRESS.search(lock) or ADDRESS.search(pyproject):
        complaints.append("an address stands in pyproject.toml or requirements.lock")
    for line in complaints:
        print(line, file=sys.stderr)
    if complaints:
        print("run `uv run scripts/pins.py --write` and commit both files", file=sys.stderr)
        return 1
    print(f"{len(versions(lock))} packages pinned; manifest, lock and resolution agree")
    return 0


def main() -> int:
    """Parse the command line and act on it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="resolve afresh and write the pins")
    action.add_argument("--check", action="store_true", help="compare the pins with a resolution")
    if parser.parse_args().write:
        write()
        return 0
    return check()


if __name__ == "__main__":
    sys.exit(main())
