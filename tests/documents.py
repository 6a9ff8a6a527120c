"""The documents of this repository and the command lines that they print."""

import re
import tomllib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md"), *ROOT.glob("docs/*.md")]
)
DOCUMENTS += [ROOT / "benchmarks" / "README.md"]
OURS = {
    tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"]
    for path in ROOT.glob("packages/*/pyproject.toml")
}
RUNNERS = ("bash", "pytest", "python", "python3", "scripts/", "torchrun", "uv")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELLS = ("", "bash", "sh", "console")
_CODE = re.compile(r"`([^`\n]+)`")


@cache
def applications() -> dict[str, Any]:
    """Return the command of every installed package of ours by the name that a user types."""
    return {
        point.name: get_command(import_module(point.module).app)
        for point in entry_points(group="console_scripts")
        if point.dist is not None and point.dist.name in OURS
    }


def command_lines(text: str) -> list[str]:
    """Return every command of a document: whole lines of blocks, and code in sentences.

    `uv run` and assignments before a command are left out, and runs of blanks are one.
    """
    lines = [
        line
        for language, block in _BLOCK.findall(text)
        if language in _SHELLS
        for line in block.replace("\\\n", " ").split("\n")
    ]
    lines += _CODE.findall(_BLOCK.sub("", text))
    found = []
    for line in lines:
        for part in re.split(r"&&|(?<!\\)\|", re.split(r" {1,}# ?|^#", line)[0]):
            words = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", " ".join(part.replace("\\|", "|").split()))
            words = re.sub(r"^uv run (?:--with \S+ )*", "", words)
            first = words.split(" ")[0]
            known = first in applications() or first.startswith(RUNNERS)
            if known and " " in words and words != "uv run":
                found.append(words)
    return found


def written(text: str) -> list[str]:
    """Return the commands of our own applications in a document."""
    return [line for line in command_lines(text) if line.split(" ")[0] in applications()]


def shown(path: Path) -> str:
    """Return a document's name for messages."""
    return str(path.relative_to(ROOT))
