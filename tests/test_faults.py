"""Whatever bytes a reader is given, it returns or says what is wrong with the file."""

import itertools
import shutil
import time

import pytest
from fault_readers import all_readers
from faults import HangError, damaged, judge, time_limit

READERS = all_readers()


def failures(reader, folder, count: int) -> list[str]:
    """Damage a reader's file in many ways; return what was neither read nor refused."""
    path = reader.write(folder)
    whole = path.read_bytes()
    assert judge(reader, path) == "read", f"the file as it was written: {judge(reader, path)}"
    found = []
    for done, content in damaged(whole, reader.text, count, seed=1):
        path.write_bytes(content)
        outcome = judge(reader, path)
        if outcome not in ("read", "refused"):
            found.append(f"{done}: {outcome}")
    return found


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_is_read_or_refused(reader, tmp_path):
    assert failures(reader, tmp_path, 12) == []


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_is_read_or_refused_in_two_hundred_ways(reader, tmp_path):
    assert failures(reader, tmp_path, 200) == []
    shutil.rmtree(tmp_path)


def test_a_reader_that_computes_for_ever_hangs_and_one_on_a_busy_machine_does_not():
    with time_limit(0.2):
        time.sleep(0.5)
    with pytest.raises(HangError, match="of the processor"), time_limit(0.05):
        any(n < 0 for n in itertools.count())  # Python code: C alone sees no signal
    with pytest.raises(HangError), time_limit(0.01):
        time.sleep(5)
