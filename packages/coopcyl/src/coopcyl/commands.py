"""What the commands do once their settings are known."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loom.config import resolve
from loom.drawing import print_table
from loom.files import write_atomic

from coopcyl import baselines, looking
from coopcyl.config import ViewConfig
from coopcyl.data.cache import StitchedCache
from coopcyl.data.tree import Tree
from coopcyl.embedded import open_tree
from coopcyl.validate import Validation, validate


def say(message: str) -> None:
    """Print one line to standard error, which leaves standard output to the result."""
    sys.stderr.write(message + "\n")


@dataclass(frozen=True)
class Request:
    """Which data set a command is about, as its user said it.

    Attributes:
        config: File of settings.
        overrides: `KEY=VALUE` on top of it.
        root: Of the data set; None takes that of the settings, or the embedded one.
        split: Folder below the root; None takes that of the settings.
    """

    config: Path | None = None
    overrides: Sequence[str] | None = None
    root: Path | None = None
    split: str | None = None

    def open(self, *, strict: bool | None = None) -> tuple[ViewConfig, Tree]:
        """Resolve the settings and list the split."""
        flags = {
            "dataset.root": self.root,
            "dataset.split": self.split,
            "dataset.strict": strict,
        }
        settings = resolve(ViewConfig, self.config, self.overrides, flags=flags).config
        return settings, open_tree(settings.dataset, say)


def run_validation(request: Request, *, samples: int, as_json: bool, output: Path | None) -> bool:
    """Validate a split, print and write the result, and return whether it passed."""
    settings, tree = request.open(strict=False)
    result = validate(tree, settings.reader(), samples, say)
    if output is not None:
        looking.make_folder(output.parent)
        write_atomic(output, result.to_json() + "\n")
    sys.stdout.write((result.to_json() if as_json else _as_text(result)) + "\n")
    return result.passed


def run_preview(request: Request, *, frame: str, output: Path, depth_aware: bool) -> str:
    """Write the pictures of one time; return what was done."""
    settings, tree = request.open()
    chosen = looking.choose_frame(tree, frame)
    written = looking.preview(chosen, settings.reader(), output, depth_aware=depth_aware)
    return f"{len(written)} files of {chosen.scenario}/{chosen.time} in {output}"


def run_viz(request: Request, *, frame: str, output: Path, rerun: bool) -> str:
    """Write the page of one time; return what was done."""
    settings, tree = request.open()
    chosen = looking.choose_frame(tree, frame)
    page = looking.viz(chosen, settings.reader(), output, rerun=rerun)
    return f"{len(chosen.agents)} vehicles of {chosen.scenario}/{chosen.time}: {page}"


def run_projection(request: Request, *, frame: str, output: Path) -> str:
    """Draw points and boxes into the images of one time; return what was done."""
    settings, tree = request.open()
    chosen = looking.choose_frame(tree, frame)
    written = looking.project(chosen, settings.reader(), output)
    return f"{len(written)} pictures of {chosen.scenario}/{chosen.time} in {output}"


def fill_cache(request: Request, folder: Path, *, rebuild_damaged: bool) -> str:
    """Stitch what is not in the cache yet; return the counts."""
    settings, tree = request.open()
    stored = StitchedCache(folder, settings.reader(), strict=not rebuild_damaged)
    for frame in tree.frames:
        for agent in frame.agents:
            stored.read(agent)
    counts = stored.counts
    return (
        f"{folder}: {counts.misses} stitched, {counts.hits} were there, "
        f"{counts.rebuilt} damaged ones made again, {len(tree.problems)} left out"
    )


def run_baselines(request: Request, *, samples: int, as_json: bool) -> None:
    """Print pose metrics of what needs no learning, and of true matches."""
    settings, tree = request.open()
    measured = baselines.rows(tree.frames, settings.reader(), samples, say)
    if as_json:
        sys.stdout.write(json.dumps(measured, indent=2) + "\n")
    else:
        metrics = list(measured["identity"])
        table = [
            [name, *(f"{row[name]:.3f}" if name in row else "" for row in measured.values())]
            for name in metrics
        ]
        print_table(["", *measured], table)


def run_stitch(rig: Path, overrides: Sequence[str] | None, output: Path) -> str:
    """Stitch loose images; return what was done."""
    settings = resolve(ViewConfig, overrides=overrides or ()).config
    return f"{looking.stitch(rig, settings.panorama.build(), output)}; see {output}"


def _as_text(result: Validation) -> str:
    """Return one line per check, with its remedy and places below."""
    width = max(len(check.name) for check in result.checks)
    lines = []
    for check in result.checks:
        lines.append(f"{check.level:<4}  {check.name:<{width}}  {check.detail}")
        if check.level != "ok":
            if check.fix:
                lines.append(f"{'':<4}  {'':<{width}}  -> {check.fix}")
            lines += [f"{'':<4}  {'':<{width}}     {place}" for place in check.places]
    return "\n".join([*lines, "passed" if result.passed else "failed"])
