"""`memory build|query|stats`: the bank of situations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from loom.cli import JsonOption
from loom.errors import UserError

from end2race.commands.cache import EMBEDDED_CACHE
from end2race.commands.train import CameraRoot, DataRoot

if TYPE_CHECKING:
    from end2race.data.batches import BatchReader

EMBEDDED_MEMORY = Path("data/end2race/memory")
K, TAU = 8, 0.1

memory_app = typer.Typer(help="Memory of similar situations.", no_args_is_help=True)


class Keys(StrEnum):
    """What situations are looked up by."""

    CAMERA = "camera"
    TEACHER = "teacher"


class Search(StrEnum):
    """How neighbours are found."""

    AUTO = "auto"
    EXACT = "exact"
    FAISS = "faiss"


CacheDir = Annotated[Path | None, typer.Option("--cache-dir", help="Teacher cache.")]
MemoryDir = Annotated[Path, typer.Option("--memory-dir", help="Folder of the memory.")]
SplitOption = Annotated[str, typer.Option(help="train, valid or test.")]
Neighbours = Annotated[int, typer.Option("--topk", "-k", min=1, help="Neighbours.")]
Temperature = Annotated[float, typer.Option(min=1e-6, help="Temperature of their weights.")]
SearchOption = Annotated[Search, typer.Option("--index", help="auto, exact or faiss.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.add_typer(memory_app, name="memory")


@memory_app.command()
def build(
    data_root: DataRoot = None,
    camera_root: CameraRoot = None,
    cache_dir: CacheDir = None,
    memory_dir: MemoryDir = EMBEDDED_MEMORY,
    split: SplitOption = "train",
    keys: Annotated[
        Keys, typer.Option(help="camera: of images and ego motion; teacher: of its vectors.")
    ] = Keys.CAMERA,
) -> None:
    """Describe every window of a split that the cache answers, for `query` and --memory topk."""
    from loom.progress import Progress

    from end2race.cache.info import Expected
    from end2race.cache.store import TeacherCache
    from end2race.memory.bank import MemoryBank
    from end2race.memory.recollection import describe_all

    directory = cache_dir or EMBEDDED_CACHE
    info = TeacherCache.open(directory).info
    reader = _reader(data_root, camera_root, split, info.seq_len, keys, info.stride)
    expected = Expected(data={split: reader.dataset.fingerprint(split)})
    cache = TeacherCache.open(directory, expected)
    progress = Progress("memory build", len(reader))
    described = describe_all(reader, keys.value, cache, progress.update)
    progress.close()
    bank = MemoryBank.build(cache, described, keys.value)
    bank.save(memory_dir)
    typer.echo(
        f"[memory] {len(bank.windows):,} windows, {bank.vectors.shape[1]} numbers each, "
        f"in {memory_dir}"
    )


@memory_app.command()
def query(
    memory_dir: MemoryDir = EMBEDDED_MEMORY,
    data_root: DataRoot = None,
    camera_root: CameraRoot = None,
    split: SplitOption = "valid",
    window: Annotated[
        list[str] | None, typer.Option(help="Key of a window; several are possible.")
    ] = None,
    topk: Neighbours = K,
    tau: Temperature = TAU,
    cache_dir: CacheDir = None,
    index: SearchOption = Search.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Show what windows are reminded of; without --window: five of the split."""
    import numpy as np
    from loom.drawing import print_json, print_table

    from end2race.memory.bank import MemoryBank
    from end2race.memory.recollection import Recollection, excluded_frames

    bank = MemoryBank.open(memory_dir, cache_dir, index.value)
    reader = _reader(data_root, camera_root, split, bank.cache.info.seq_len, Keys(bank.kind))
    names = [each.key for each in reader.windows]
    if unknown := [key for key in window or () if key not in names]:
        raise UserError(
            f"{split} has no window {unknown[0]}",
            hint=f"it has {len(names)}, from {names[0]} to {names[-1]}",
        )
    wanted = window or [names[i] for i in np.linspace(0, len(names) - 1, 5).round().astype(int)]
    batch = reader.read([names.index(key) for key in wanted])
    left_out = excluded_frames(bank, reader.dataset, split)
    recall = Recollection(bank, ("actions",), topk, tau, left_out)(batch)
    rows = [
        {
            "window": key,
            "nearest": bank.windows[recall.rows[i, 0]] if recall.rows[i, 0] >= 0 else None,
            "cosine": float(recall.similarity[i, 0]) if recall.rows[i, 0] >= 0 else None,
            "recalled_deg": float(recall.fields["actions"][i, -1, 0]),
            "label_deg": float(batch.actions[i, -1, 0]),
            "confidence": float(recall.confidence[i]),
            "neighbours": [bank.windows[row] for row in recall.rows[i] if row >= 0],
        }
        for i, key in enumerate(batch.keys)
    ]
    if as_json:
        print_json(rows)
        return
    columns = [name for name in rows[0] if name != "neighbours"]
    print_table(columns, [[row[name] for name in columns] for row in rows])


@memory_app.command()
def stats(
    memory_dir: MemoryDir = EMBEDDED_MEMORY,
    topk: Neighbours = K,
    tau: Temperature = TAU,
    cache_dir: CacheDir = None,
    index: SearchOption = Search.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Answer each segment from the others and compare with what the teacher did."""
    from dataclasses import asdict

    from loom.drawing import print_json, print_table

    from end2race.memory.bank import MemoryBank
    from end2race.memory.stats import memory_stats

    found = memory_stats(MemoryBank.open(memory_dir, cache_dir, index.value), topk, tau)
    rows = [asdict(each) for each in found.answered]
    if as_json:
        print_json({**found.facts, "answered": rows})
        return
    for name, value in found.facts.items():
        typer.echo(f"{name:<20} {value}")
    typer.echo("wheel angle of other segments' windows, mean squared error in degrees^2:")
    print_table(list(rows[0]), [list(row.values()) for row in rows])


def _reader(
    data_root: Path | None,
    camera_root: Path | None,
    split: str,
    seq_len: int,
    keys: Keys,
    stride: int = 1,
) -> BatchReader:
    """Open a split, with images if they are what is looked up by."""
    from end2race.data.batches import BatchReader
    from end2race.data.camera_root import join_camera
    from end2race.data.dataset import open_dataset
    from end2race.data.windows import windows
    from end2race.embedded import default_dataset

    root = data_root or default_dataset(lambda line: typer.echo(line, err=True))
    dataset = open_dataset(root, (split,))
    if camera_root is not None:
        dataset = join_camera(dataset, camera_root, (split,))
    chosen = windows(dataset, split, seq_len, stride)
    return BatchReader(dataset, chosen, images=keys is Keys.CAMERA, points=False)
