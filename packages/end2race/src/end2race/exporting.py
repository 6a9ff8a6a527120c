"""`export-cache`: a trained teacher, a split of a dataset, and the cache that its answers go to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from loom.device import choose_device
from loom.errors import UserError
from loom.progress import Progress

from end2race.cache import npz_compat
from end2race.cache.export import Exported, Exporter, Outputs, field_shapes
from end2race.cache.fingerprint import teacher_sha256
from end2race.cache.info import FILE, CacheInfo
from end2race.cache.keys import parse_key
from end2race.cache.store import TeacherCache
from end2race.data.batches import Batch, BatchReader
from end2race.data.dataset import open_dataset
from end2race.data.windows import windows
from end2race.driving import Driving, answer
from end2race.restore import restore

FIELDS = {"gru_out": "gru_out", "bev_vec_seq": "bev_vec", "bev_feat_seq": "bev_feat"}
"""Names of the model's intermediate results and of the cache's fields."""
_LARGEST_GAP = {"float32": 1e-4, "float16": 2e-3}


@dataclass(frozen=True)
class ExportSettings:
    """What to export, from what, to where.

    Attributes:
        data_root: The dataset.
        teacher: Run directory, checkpoint or model file.
        cache_dir: Folder of the cache.
        split: Which split.
        seq_len: Frames per window; None: as the teacher was trained.
        stride: Frames between the starts of two windows.
        batch_size: Windows that the teacher sees at once.
        num_workers: Batches that are read in advance.
        device: `auto`, `cpu` or `cuda`.
        save_bev_feat: Also keep the teacher's feature map.
        dtype: `float32` or `float16`.
        lidar_num_features: What the caller believes of the LiDAR files; None: as declared.
        resume: Go on with a cache that holds a part of the split.
        verify: Ask the teacher again about some windows and compare.
    """

    data_root: Path
    teacher: Path
    cache_dir: Path
    split: str = "train"
    seq_len: int | None = None
    stride: int = 1
    batch_size: int = 8
    num_workers: int = 2
    device: str = "auto"
    save_bev_feat: bool = False
    dtype: str = "float32"
    lidar_num_features: int | None = None
    resume: bool = False
    verify: bool = False


class AskedTeacher:
    """The teacher as a function from a batch to arrays."""

    def __init__(self, model: Driving, *, save_bev_feat: bool) -> None:
        """Choose what is asked for besides the actions."""
        self._model = model.eval()
        self._names = [name for name in FIELDS if save_bev_feat or name != "bev_feat_seq"]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """Answer a batch."""
        actions, _, aux = answer(self._model, batch, self._names)
        named = {"actions": actions} | {FIELDS[name]: aux[name] for name in self._names}
        return {name: values.float().cpu().numpy() for name, values in named.items()}


@dataclass(frozen=True)
class Prepared:
    """A teacher before a split: what a cache of its answers is, and what fills one."""

    info: CacheInfo
    exporter: Exporter[Batch]
    source: str
    """Where the teacher was found."""
    other_lidar: str | None
    """What to say of clouds with other beams than it learned from."""


def export_cache(settings: ExportSettings, say: Callable[[str], None]) -> TeacherCache:
    """Put a teacher's answers on a split into a cache, as far as they are not there.

    Raises:
        UserError: The dataset, the teacher or the cache is not what it should be, or the answers
            differ when they are asked for again.
    """
    prepared = prepare(settings)
    announce(settings, prepared, say)
    cache = open_cache(settings, prepared)
    _fill(prepared.exporter, cache, say)
    if settings.verify:
        verify(prepared.exporter, cache, say)
    return cache


def prepare(settings: ExportSettings) -> Prepared:
    """Open the dataset and the teacher, and ask it once.

    Raises:
        UserError: One of the two is not what it should be.
    """
    dataset = open_dataset(settings.data_root, (settings.split,))
    declared = dataset.info.lidar_num_features
    if settings.lidar_num_features not in (None, declared):
        raise UserError(
            f"{settings.data_root} declares {declared} numbers per LiDAR point, not "
            f"{settings.lidar_num_features}",
            hint="its dataset.json decides how the files are read; correct it if it is wrong",
        )
    teacher = restore(settings.teacher, "teacher")
    device = choose_device(settings.device)
    teacher.model.to(device)
    seq_len = settings.seq_len or teacher.file.seq_len
    chosen = windows(dataset, settings.split, seq_len, settings.stride)
    reader = BatchReader(dataset, chosen, images=False, points=True)
    asked = AskedTeacher(teacher.model, save_bev_feat=settings.save_bev_feat)
    info = CacheInfo(
        teacher_sha256=teacher_sha256(teacher.model.state_dict(), teacher.settings()),
        data={settings.split: dataset.fingerprint(settings.split)},
        seq_len=seq_len,
        stride=settings.stride,
        dtype=settings.dtype,
        fields=field_shapes(asked(reader.read([0]))),
        origin={
            "device": str(device),
            "torch": torch.__version__,
            "batch_size": str(settings.batch_size),
        },
    )
    keys = [window.key for window in chosen]
    exporter = Exporter(asked, reader, keys, settings.batch_size, settings.num_workers)
    other_lidar = teacher.other_lidar(dataset.info.lidar_beams, settings.data_root)
    return Prepared(info, exporter, str(teacher.source), other_lidar)


def announce(settings: ExportSettings, prepared: Prepared, say: Callable[[str], None]) -> None:
    """Say which windows are answered by whom."""
    info = prepared.info
    say(
        f"[data] {len(prepared.exporter.keys):,} windows of {info.seq_len} frames in "
        f"{settings.data_root}, {settings.split}; teacher {prepared.source} "
        f"({info.teacher_sha256[:12]})"
    )
    if prepared.other_lidar is not None:
        say(prepared.other_lidar)


def open_cache(settings: ExportSettings, prepared: Prepared) -> TeacherCache:
    """Create the cache, or open one that this export may go on with."""
    directory, info, keys = settings.cache_dir, prepared.info, prepared.exporter.keys
    if not (directory / FILE).is_file():
        return TeacherCache.create(directory, info)
    cache = TeacherCache.open(directory, info)
    cache.add_split(settings.split, info.data[settings.split])
    coverage = cache.coverage(keys)
    if 0 < coverage.found < coverage.wanted and not settings.resume:
        raise UserError(
            f"{directory} holds {coverage} of {settings.split} already",
            hint="go on with --resume, or give another --cache-dir",
        )
    return cache


def _fill(exporter: Exporter, cache: TeacherCache, say: Callable[[str], None]) -> None:
    there = cache.coverage(exporter.keys).found
    progress = Progress("export-cache", len(exporter.keys), there)
    done = exporter.fill(cache, progress.update)
    progress.close()
    report(done, cache, say)


def report(done: Exported, cache: TeacherCache, say: Callable[[str], None]) -> None:
    """Say what an export did, and what the cache holds now."""
    say(
        f"[cache] {done.written:,} windows written in {done.seconds:.1f} s, {done.found:,} were "
        f"there; {len(cache):,} windows, {cache.frame_count:,} frames, {cache.size / 1e6:.1f} MB "
        f"in {cache.directory}"
    )


def verify(exporter: Exporter, cache: TeacherCache, say: Callable[[str], None]) -> None:
    """Compare the file's check sums, and some answers with the teacher's own."""
    damages = [complaint for _, complaint in cache.damages()]
    gaps = exporter.verify(cache)
    shown = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
    say(f"[verify] {len(damages)} damaged shards; largest relative differences: {shown}")
    limit = _LARGEST_GAP[cache.info.dtype]
    if damages or not max(gaps.values()) <= limit:
        raise UserError(
            f"{cache.directory} is not what the teacher answers: {'; '.join([*damages, shown])}",
            hint=f"differences up to {limit:g} are rounding; export again into another folder",
        )


def import_npz(
    folder: Path, cache_dir: Path, data_root: Path, dtype: str, say: Callable[[str], None]
) -> TeacherCache:
    """Take over a folder of the notes' `.npz` files.

    Raises:
        UserError: A file is damaged or unlike the others, or the dataset lacks its split.
    """
    files = npz_compat.list_folder(folder)
    splits = sorted({parse_key(key).split for key in files})
    dataset = open_dataset(data_root, splits)
    data = {split: dataset.fingerprint(split) for split in splits if dataset.of_split(split)}
    info = npz_compat.describe(files, data, dtype)
    begun = (cache_dir / FILE).is_file()
    cache = TeacherCache.open(cache_dir, info) if begun else TeacherCache.create(cache_dir, info)
    progress = Progress("cache convert", len(files), len(files) - len(cache.missing(files)))
    start = progress.start
    count = npz_compat.import_folder(files, cache, lambda n: progress.update(start + n))
    progress.close()
    say(f"[cache] {count:,} windows taken over from {folder} to {cache_dir}")
    return cache


def export_npz(cache_dir: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Write a cache as a folder of the notes' `.npz` files."""
    cache = TeacherCache.open(cache_dir)
    progress = Progress("cache convert", len(cache))
    for count in npz_compat.export_folder(cache, folder):
        progress.update(count)
    progress.close()
    say(f"[cache] {len(cache):,} files in {folder}")
