"""`export-cache`, and `cache inspect|verify|convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from loom.cli import ExecutorOption, JsonOption
from loom.errors import UserError

EMBEDDED_CACHE = Path("data/end2race/teacher-cache")

cache_app = typer.Typer(help="Teacher caches: look, check, convert.", no_args_is_help=True)
CacheArgument = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of a teacher cache.")]


class Dtype(StrEnum):
    """Types on disk."""

    FP32 = "fp32"
    FP16 = "fp16"

    @property
    def numpy(self) -> str:
        """The name that `cache.json` uses."""
        return {"fp32": "float32", "fp16": "float16"}[self.value]


class Features(StrEnum):
    """Numbers per LiDAR point."""

    AUTO = "auto"
    FOUR = "4"
    EIGHT = "8"


class Device(StrEnum):
    """Where the teacher runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


DtypeOption = Annotated[Dtype, typer.Option(help="Type of the features on disk.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command("export-cache")(export_cache)
    app.command("export-shards", hidden=True)(export_shards)
    app.add_typer(cache_app, name="cache")


def export_cache(
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Dataset; without one: the embedded one."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", min=1, help="Frames (default: the teacher's)."),
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Frames between two windows.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Windows at once.")] = 8,
    num_workers: Annotated[
        int, typer.Option("--num-workers", min=0, help="Batches read in advance.")
    ] = 2,
    teacher_ckpt: Annotated[
        Path | None,
        typer.Option(
            "--teacher-ckpt",
            help="Run, checkpoint or model file of a teacher; without one: the embedded one.",
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="Folder of the cache."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the teacher runs.")] = Device.AUTO,
    save_bev_feat: Annotated[
        bool,
        typer.Option("--save-bev-feat", help="Keep the feature maps: large."),
    ] = False,
    lidar_num_features: Annotated[
        Features,
        typer.Option("--lidar-num-features", help="auto: as dataset.json declares."),
    ] = Features.AUTO,
    dtype: DtypeOption = Dtype.FP32,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a cache that was not finished.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Ask the teacher again about some windows.")
    ] = False,
    executor: ExecutorOption = "local",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes at once (default: this one, or a whole cluster)."),
    ] = None,
) -> None:
    """Store a teacher's answers on every window of a split: what a student learns from.

    Without options: the embedded dataset and teacher, into data/end2race/teacher-cache.
    """
    from end2race import embedded, exporting

    if cache_dir is None and (data_root is not None or teacher_ckpt is not None):
        raise UserError(
            "no --cache-dir for the answers", hint="name an empty folder, or a cache to go on with"
        )
    settings = exporting.ExportSettings(
        data_root=data_root or embedded.default_dataset(typer.echo),
        teacher=teacher_ckpt or embedded.default_teacher(typer.echo),
        cache_dir=cache_dir or EMBEDDED_CACHE,
        split=split,
        seq_len=seq_len,
        stride=stride,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device.value,
        save_bev_feat=save_bev_feat,
        dtype=dtype.numpy,
        lidar_num_features=None if lidar_num_features is Features.AUTO else int(lidar_num_features),
        resume=resume,
        verify=verify,
    )
    if executor == "local" and jobs in (None, 1):
        exporting.export_cache(settings, typer.echo)
        return
    from loom import jobs as executors

    from end2race.export_jobs import export_with_jobs

    export_with_jobs(settings, executors.executor(executor, jobs), jobs, typer.echo)


def export_shards(
    plan: Annotated[Path, typer.Argument(help="plan-SPLIT.json of an export.")],
    first: Annotated[int, typer.Argument(min=0, help="Number of the first shard.")],
    last: Annotated[int, typer.Argument(min=0, help="Number of the last shard.")],
) -> None:
    """Write some shards of an export: what its jobs run."""
    from end2race.export_jobs import export_shards as write_shards

    write_shards(plan, first, last, typer.echo)


@cache_app.command()
def inspect(cache: CacheArgument, as_json: JsonOption = False) -> None:
    """Show whose answers a cache holds, on which data, and how much of it."""
    from loom.drawing import print_json, print_table

    from end2race.cache.inspection import inspect_cache

    found = inspect_cache(cache)
    if as_json:
        print_json(found.as_dict())
        return
    for name, value in found.facts.items():
        typer.echo(f"{name:<12} {value}")
    print_table(("split", "segment", "windows", "frames"), found.segments)


@cache_app.command()
def verify(
    cache: CacheArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged shards; an export refills them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte with the check sums; exit code 2 if one differs."""
    from loom.drawing import print_json

    from end2race.cache.store import TeacherCache
    from end2race.cache.store import repair as repair_cache

    if repair:
        complaints = repair_cache(cache)
        if as_json:
            print_json({"removed": complaints})
        else:
            typer.echo("\n".join([*complaints, f"{len(complaints)} shards removed"]))
        return
    opened = TeacherCache.open(cache)
    complaints = [complaint for _, complaint in opened.damages()]
    if as_json:
        facts = {"windows": len(opened), "bytes": opened.size, "damages": complaints}
        print_json(facts)
    if complaints:
        raise UserError("; ".join(complaints), hint="--repair removes them")
    if not as_json:
        typer.echo(f"{cache}: {len(opened):,} windows, {opened.size:,} bytes, all as written")


@cache_app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A folder of .npz files, or a cache.")],
    target: Annotated[Path, typer.Argument(help="The cache, or the folder of .npz files.")],
    npz_compat: Annotated[
        bool,
        typer.Option("--npz-compat", help="Write one .npz per window, as the notes have them."),
    ] = False,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Dataset that the .npz files belong to."),
    ] = None,
    dtype: DtypeOption = Dtype.FP32,
) -> None:
    """Take over the notes' folder of .npz files, or write one from a cache."""
    from end2race.exporting import export_npz, import_npz

    if npz_compat:
        export_npz(source, target, typer.echo)
    elif data_root is None:
        raise UserError(
            "no --data-root: the files do not say which data they belong to",
            hint="name the dataset they were made of; --npz-compat goes the other way",
        )
    else:
        import_npz(source, target, data_root, dtype.numpy, typer.echo)
