"""The versions that uv locks are the ones that the repository pins."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==([^\s;\\]+)")


def constraints() -> set[tuple[str, str]]:
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    matches = [PIN.match(row) for row in manifest["tool"]["uv"]["constraint-dependencies"]]
    return {(m[1], m[2]) for m in matches if m}


def test_the_lock_that_uv_writes_holds_exactly_the_pinned_versions():
    path = ROOT / "uv.lock"
    if not path.is_file():
        pytest.skip("no uv.lock here: the packages were not installed by `uv run`")
    lock = tomllib.loads(path.read_text(encoding="utf-8"))
    locked = {
        (package["name"], package["version"])
        for package in lock["package"]
        if "registry" in package["source"]
    }
    assert locked == constraints()


def test_the_hashed_lock_holds_exactly_the_pinned_versions():
    rows = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    matches = [PIN.match(row) for row in rows]
    assert {(m[1], m[2]) for m in matches if m} == constraints()


def test_every_requirement_in_the_hashed_lock_has_a_hash():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
