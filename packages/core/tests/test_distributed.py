"""Two gloo processes do what one does, and the functions that make them agree."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loom import distributed
from loom.record import read_records
from loom.sampling import Shard

TINY = Path(__file__).with_name("tiny_training.py")


def load(directory, world, rank):
    return torch.load(directory / f"world{world}_rank{rank}.pt", weights_only=True)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """The same training in one process and in two, and what two processes exchanged."""
    directory = tmp_path_factory.mktemp("group")
    command = [sys.executable, str(TINY), "group", str(directory), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return directory


def test_two_processes_see_the_samples_of_one_in_its_order(group):
    single = load(group, 1, 0)["seen"]
    parts = [load(group, 2, rank)["seen"] for rank in range(2)]
    assert [step for step, _ in single] == list(range(40))
    for (step, whole), (_, first), (_, second) in zip(single, *parts, strict=True):
        assert first + second == whole, step


def test_two_processes_have_the_steps_and_rates_of_one(group):
    tables = [
        [
            (row["step"], row["lr/trunk"], row["lr/head"])
            for row in read_records(group / f"world{world}")
        ]
        for world in (1, 2)
    ]
    assert len(tables[0]) == 40
    assert tables[0] == tables[1]
    assert load(group, 2, 0)["step"] == load(group, 2, 1)["step"] == 40


def test_two_processes_record_the_losses_of_one(group):
    rows = [read_records(group / f"world{world}") for world in (1, 2)]
    for one, two in zip(*rows, strict=True):
        for key in ("loss/total", "loss/fit", "grad/norm"):
            assert two[key] == pytest.approx(one[key], rel=1e-4)


def test_two_processes_end_with_the_weights_of_one(group):
    single = load(group, 1, 0)["weights"]
    for rank in range(2):
        for place, value in load(group, 2, rank)["weights"].items():
            if place.startswith(("/model", "/ema")):
                torch.testing.assert_close(value, single[place], rtol=0, atol=1e-6)


def test_only_rank_0_writes(group):
    log = (group / "world2" / "log.txt").read_text(encoding="utf-8")
    assert log.count("[run] begins") == 1
    checkpoints = (group / "world2" / "checkpoints").glob("step_*")
    assert [folder.name for folder in checkpoints] == ["step_000040"]


def test_gradients_are_averaged_and_a_missing_one_counts_as_zero(group):
    for rank in range(2):
        exchange = load(group, 2, rank)["exchange"]
        gradients = exchange["gradients"]
        assert gradients[0].tolist() == [[0.5, 0.5, 0.5]] * 2  # 0 and 1
        assert gradients[1].tolist() == [2.0]  # 4 on rank 1, none on rank 0
        assert gradients[2] is None  # none anywhere
        assert gradients[3].tolist() == [0.5]  # float64 travels by itself
        assert exchange["large"].tolist() == [1.5]  # in a bucket of its own


def test_the_largest_flag_is_agreed_on(group):
    assert [load(group, 2, rank)["exchange"]["agreed"] for rank in range(2)] == [15, 15]


def test_every_process_takes_the_first_ones_word_for_the_best_checkpoint(group):
    for rank in range(2):  # sharded weights take all of them to save: one alone would wait for ever
        assert load(group, 2, rank)["exchange"]["best"] == [True, False, False, True]


def test_uneven_rows_are_gathered_in_order(group):
    for rank in range(2):
        exchange = load(group, 2, rank)["exchange"]
        assert exchange["gathered"].tolist() == [[i, i * i] for i in range(5)]
        assert exchange["mean"].tolist() == [0.5, 10.0]


def test_one_process_is_the_identity():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    distributed.average_gradients([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert distributed.init() == Shard(0, 1)
    assert distributed.is_main()
    assert distributed.agree(7) == 7
    assert distributed.sharded_indices(5) == range(5)
    assert distributed.gather(parameter).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("world", range(1, 8))
def test_sharded_indices_cover_once_without_padding(world):
    parts = [distributed.sharded_indices(17, Shard(rank, world)) for rank in range(world)]
    assert [index for part in parts for index in part] == list(range(17))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.dist
def test_torchrun_gives_what_one_process_gives(tmp_path, group):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(TINY), "train", str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        here, there = load(tmp_path, 2, rank), load(group, 2, rank)
        assert here["seen"] == there["seen"]
        for place, value in there["weights"].items():
            if place.startswith("/model"):
                assert torch.equal(here["weights"][place], value), place


def test_no_process_of_a_training_that_fails_leaves_before_the_first_has_made_its_page(tmp_path):
    command = [sys.executable, str(TINY), "leave", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "gate: process 1 left after the page",
        "value: process 1 left after the page",
        "early: process 1 left after the page",
        "alone: process 1 left before the page",
    ]
