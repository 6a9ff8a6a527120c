"""Files that claim gigabytes, disks without room, folders that are none: said, and nothing lost."""

import itertools
import multiprocessing
import random
import time
from pathlib import Path

import pytest
from fault_readers import all_readers
from faults import judge
from hostile import BOMBS, NOT_OURS, attempt, contents, largest_file, memory_limit

READERS = {reader.name: reader for reader in all_readers()}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["test_hostile"])
WRITERS = [reader for reader in READERS.values() if reader.name not in NOT_OURS]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: f"{bomb.reader}, {bomb.name}")
def test_a_bomb_is_refused_before_it_goes_off(bomb, tmp_path):
    reader = READERS[bomb.reader]
    path = reader.write(tmp_path)
    bomb.make(path)
    assert path.stat().st_size < 20_000_000
    with memory_limit():
        outcome = judge(reader, path)
    assert outcome in ("read", "refused")


@pytest.mark.parametrize("reader", WRITERS, ids=lambda reader: reader.name)
def test_a_full_disk_is_said_and_what_was_there_stays(reader, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    path = reader.write(whole)
    before = contents(whole)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with largest_file(max(1, path.stat().st_size // 2)):
        assert attempt(reader, fresh) == "refused"
        again = attempt(reader, whole)
    assert again in ("refused", "written")  # written: it leaves alone what is there
    assert contents(whole).items() >= before.items()
    left = fresh / path.relative_to(whole)
    if left.exists():
        assert judge(reader, left) in ("read", "refused")


@pytest.mark.parametrize("reader", WRITERS, ids=lambda reader: reader.name)
def test_a_folder_that_is_a_file_is_said(reader, tmp_path):
    (tmp_path / "file").write_text("")
    assert attempt(reader, tmp_path / "file") == "refused"
    assert (tmp_path / "file").read_text() == ""


def test_the_limit_of_memory_bites():
    with memory_limit(), pytest.raises(MemoryError):
        bytes(3 << 30)


def write_for_ever(name: str, folder: str) -> None:
    """Write a reader's file again and again, each time into a folder of its own."""
    for number in itertools.count():
        place = Path(folder) / f"{number:05d}"
        place.mkdir()
        READERS[name].write(place)


@pytest.mark.slow
@pytest.mark.parametrize("reader", WRITERS, ids=lambda reader: reader.name)
def test_a_writer_that_is_killed_leaves_nothing_that_is_misread(reader, tmp_path):
    draw = random.Random(reader.name)
    for kill in range(3):
        folder = tmp_path / str(kill)
        folder.mkdir()
        writer = PROCESSES.Process(target=write_for_ever, args=(reader.name, str(folder)))
        writer.start()
        while writer.is_alive() and not any(folder.iterdir()):
            time.sleep(0.001)
        assert writer.is_alive()
        time.sleep(draw.uniform(0, 0.2))
        writer.kill()
        writer.join()
        (tmp_path / f"whole-{kill}").mkdir()
        name = reader.write(tmp_path / f"whole-{kill}").relative_to(tmp_path / f"whole-{kill}")
        left = [place / name for place in sorted(folder.iterdir()) if (place / name).exists()]
        for path in left[-2:]:  # the ones before it were whole
            assert judge(reader, path) in ("read", "refused"), path
