"""Every command that only looks says it to machines too, with `--json`; the others say why not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from documents import applications

MAKES_A_RUN = "its run directory holds settings, records, scores and status as JSON"
MAKES_FILES = "makes files, and prints where they are"
WRITES_ALL = "writes all that it prints as JSON into the folder that it names"
SERVES = "serves or waits until it is ended"
ANSWERS = "answers by its exit code"
PRINTS_LINES = "prints JSON lines anyway"

WITHOUT = {
    "coopcyl": {
        MAKES_A_RUN: ("demo", "train"),
        MAKES_FILES: ("cache", "preview", "project", "render", "report", "stitch", "synth", "viz"),
        PRINTS_LINES: ("predict",),
    },
    "end2race": {
        MAKES_A_RUN: ("demo", "train-student", "train-teacher"),
        MAKES_FILES: (
            *("cache convert", "export-cache", "export-shards", "memory build", "sim-collect"),
            *("import bag", "import f1tenth-csv", "import kitti-bin", "import morai"),
            "import pcd",
        ),
    },
    "featdistill": {
        MAKES_A_RUN: ("demo", "train", "teacher fit"),
        MAKES_FILES: (
            *("archive", "export", "migrate", "render", "report", "scene import", "scene synth"),
            *("teacher export-ply", "teacher render"),
        ),
        WRITES_ALL: ("study",),
        SERVES: ("shell", "view"),
    },
    "loom": {MAKES_FILES: ("report", "snapshot")},
    "maniflow-overlay": {
        MAKES_A_RUN: ("demo", "train", "eval matrix"),
        MAKES_FILES: (
            *("data attach-paths", "data convert", "data export-zarr", "data extract-frames"),
            *(
                "data import-zarr",
                "data synth",
                "overlay frames",
                "overlay render",
                "paths generate",
            ),
            *("paths import-pickles", "paths oracle", "paths parse", "report", "sim collect"),
            "sim demo",
        ),
        ANSWERS: ("overlay check",),
        SERVES: ("paths serve-fake", "servers up", "servers down"),
    },
    "pinpad": {
        MAKES_A_RUN: ("demo", "sweep", "train"),
        MAKES_FILES: ("boundaries draw", "boundaries score", "collect", "planted"),
        WRITES_ALL: ("boundaries eval", "report"),
        ANSWERS: ("stop",),
    },
}


def commands(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command below a command line, by what is typed after the application's name."""
    for word, below in getattr(node, "commands", {}).items():
        yield from commands(below, f"{name} {word}".strip())
    if not hasattr(node, "commands"):
        yield name, node


def test_every_command_has_json_or_is_named_with_the_reason():
    for application, node in applications().items():
        named = [word for words in WITHOUT[application].values() for word in words]
        assert len(named) == len(set(named))
        lacking = {
            name
            for name, command in commands(node)
            if not any("--json" in parameter.opts for parameter in command.params)
        }
        assert lacking == set(named), application
