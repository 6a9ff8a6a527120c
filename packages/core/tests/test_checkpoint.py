"""Checkpoints: whole or absent, damage is found, nothing is lost."""

import errno
import json
import math
import os
import random
import resource
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from loom.checkpoint import Checkpoints, init_from
from loom.errors import UserError
from loom.files import sha256_file
from torch import nn


def state_of(value, size=200):
    return {"model": {"w": torch.full((size,), float(value))}, "progress": {"step": value}}


@pytest.fixture
def warned():
    return []


@pytest.fixture
def checkpoints(tmp_path, warned):
    return Checkpoints(tmp_path / "checkpoints", on_warning=warned.append)


def filled(checkpoints, steps=(1, 2, 3)):
    for step in steps:
        checkpoints.save(step, state_of(step))
    return checkpoints.folder(steps[-1])


def test_what_is_loaded_is_what_was_saved(checkpoints):
    state = {
        "model": {"w": torch.randn(3, 4).t(), "n": torch.tensor(3), "b": torch.tensor([True])},
        "optimizer": {"state": {0: {"m": torch.randn(2)}}, "groups": [{"betas": (0.9, 0.99)}]},
        "random": {"text": "ü", "big": 2**90, "none": None, "bytes": b"\0", "inf": math.inf},
    }
    checkpoints.save(7, state, config_hash="abc", world_size=2, extra={"note": 1})
    loaded = checkpoints.load_newest()
    assert loaded.step == 7
    assert torch.equal(loaded.state["model"]["w"], state["model"]["w"])
    assert torch.equal(
        loaded.state["optimizer"]["state"][0]["m"], state["optimizer"]["state"][0]["m"]
    )
    assert loaded.state["optimizer"]["groups"] == state["optimizer"]["groups"]
    assert loaded.state["random"] == state["random"]
    assert [loaded.manifest[k] for k in ("config_hash", "world_size", "extra")] == [
        "abc",
        2,
        {"note": 1},
    ]


def test_the_manifest_has_the_digest_of_the_file(checkpoints):
    folder = checkpoints.save(1, state_of(1, size=3_000_000))
    expected = json.loads((folder / "manifest.json").read_text())["manifest"]["files"]["state.pt"]
    assert expected == {
        "bytes": (folder / "state.pt").stat().st_size,
        "sha256": sha256_file(folder / "state.pt"),
    }


def test_an_empty_folder_has_no_newest(checkpoints):
    assert checkpoints.load_newest() is None
    assert checkpoints.steps() == []
    assert checkpoints.best() is None


def test_the_last_two_the_best_and_the_final_are_kept(checkpoints):
    scores = {1: 5.0, 2: 9.0, 3: 8.0, 4: math.nan, 5: None}
    for step, score in scores.items():
        checkpoints.save(step, state_of(step), metric=score, final=step == 3)
    checkpoints.save(6, state_of(6))
    assert checkpoints.steps() == [2, 3, 5, 6]
    assert checkpoints.best() == checkpoints.folder(2)
    assert checkpoints.final() == checkpoints.folder(3)


def test_an_infinite_score_is_the_best(checkpoints):
    checkpoints.save(1, state_of(1), metric=math.inf)
    checkpoints.save(2, state_of(2), metric=1e30)
    assert checkpoints.best() == checkpoints.folder(1)
    assert checkpoints.best_metric() == math.inf


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        "{}",
        '{"folder": 5, "metric": 1}',
        '{"folder": "../elsewhere", "metric": 1}',
        '{"folder": "step_000003", "metric": "much"}',
        '{"folder": "step_000003", "metric": null}',
    ],
)
def test_a_pointer_that_names_no_checkpoint_is_refused_and_not_followed(checkpoints, content):
    filled(checkpoints)
    (checkpoints.directory.parent / "elsewhere").mkdir()
    (checkpoints.directory / "best.json").write_text(content)
    for ask in (checkpoints.best, checkpoints.best_metric):
        with pytest.raises(UserError, match=r"best\.json: not what Loom wrote"):
            ask()


def test_a_checkpoint_whose_digest_could_not_be_made_is_not_kept(checkpoints, monkeypatch):
    filled(checkpoints, (1,))
    opened = Path.open

    def no_second_reader(path: Path, mode: str = "r", **options):
        if path.name == "state.pt" and mode == "rb":
            raise OSError(errno.EIO, "input/output error")
        return opened(path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", no_second_reader)
        with pytest.raises(UserError, match="step 2 was not written: input/output error"):
            checkpoints.save(2, state_of(2))
    assert checkpoints.steps() == checkpoints.intact_steps() == [1]


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99, "the last bytes"])
@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_truncation_is_found_and_the_previous_one_taken(checkpoints, warned, part, name):
    file = filled(checkpoints) / name
    size = file.stat().st_size
    os.truncate(file, size - 2 if isinstance(part, str) else int(part * size))
    assert checkpoints.load_newest().step == 2
    (warning,) = warned
    assert "step_000003" in warning
    assert name in warning
    assert "corrupt" in warning


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_any_flipped_bit_is_found(checkpoints, warned, name):
    folder = filled(checkpoints)
    original = (folder / name).read_bytes()
    bits = random.Random(0)
    for _ in range(25):
        damaged = bytearray(original)
        damaged[bits.randrange(len(damaged))] ^= 1 << bits.randrange(8)
        (folder / name).write_bytes(damaged)
        assert 3 not in checkpoints.intact_steps()
    assert checkpoints.load_newest().step == 2
    assert name in warned[0]


def test_a_flipped_bit_in_a_weight_would_load_without_a_word(checkpoints):
    """Why the digest is there: torch itself does not notice."""
    file = filled(checkpoints) / "state.pt"
    content = bytearray(file.read_bytes())
    content[content.index(np.full(200, 3.0, np.float32).tobytes()) + 2] ^= 0x10
    file.write_bytes(content)
    assert torch.load(file, weights_only=True)["model"]["w"][0] != 3.0
    assert checkpoints.load_newest().step == 2


def test_a_damaged_one_is_moved_aside_and_not_lost(checkpoints):
    file = filled(checkpoints) / "state.pt"
    file.write_bytes(b"not a checkpoint")
    checkpoints.load_newest()
    (moved,) = (checkpoints.directory / "corrupt").iterdir()
    assert (moved / "state.pt").read_bytes() == b"not a checkpoint"
    assert checkpoints.steps() == [2]


def test_a_missing_file_or_a_swapped_folder_is_damage(checkpoints, warned):
    filled(checkpoints)
    (checkpoints.folder(3) / "state.pt").unlink()
    checkpoints.folder(2).rename(checkpoints.folder(9))
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoints.load_newest()
    assert len(warned) == 2
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoints.load_newest()  # and it does not begin from nothing the next time


def test_an_explicit_damaged_checkpoint_is_an_error_that_names_the_intact_ones(checkpoints):
    filled(checkpoints)
    os.truncate(checkpoints.folder(3) / "state.pt", 10)
    with pytest.raises(UserError, match="10 bytes of") as caught:
        checkpoints.load(3)
    assert "[2]" in caught.value.hint
    assert checkpoints.load(checkpoints.folder(2)).step == 2
    with pytest.raises(UserError, match="there is no"):
        checkpoints.load(55)


class Shell:
    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def test_a_malicious_pickle_with_a_valid_manifest_is_refused(
    checkpoints, warned, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loom.checkpoint._require_plain", lambda value, place: None)
    checkpoints.save(1, state_of(1))
    checkpoints.save(2, {"model": {"w": Shell()}})
    assert checkpoints.load_newest().step == 1
    assert "safe loader" in warned[0]
    assert not Path("EXECUTED").exists()


@pytest.mark.parametrize("value", [np.zeros(3), np.float32(1), object(), {1, 2}, Path("x")])
def test_what_could_not_be_loaded_is_not_saved(checkpoints, value):
    with pytest.raises(TypeError, match=r"state\.extras\.buffer\[1\]"):
        checkpoints.save(1, {"extras": {"buffer": [0, value]}})
    assert checkpoints.steps() == []


@contextmanager
def small_disk(size: int) -> Generator[None]:
    """Let no file grow beyond a size; within the test alone, for pytest may print to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 5_000, 400_000])
def test_a_full_disk_is_a_user_error_and_the_old_ones_are_intact(checkpoints, size):
    filled(checkpoints, (1, 2))
    before = {p: p.read_bytes() for p in checkpoints.directory.rglob("*") if p.is_file()}
    refused = pytest.raises(UserError, match="checkpoint of step 3 was not written")
    with refused as caught, small_disk(size):
        checkpoints.save(3, state_of(3, size=200_000))
    assert "intact" in caught.value.hint
    after = {p: p.read_bytes() for p in checkpoints.directory.rglob("*") if p.is_file()}
    assert after == before


def test_saving_a_step_again_replaces_it(checkpoints):
    checkpoints.save(1, state_of(1))
    checkpoints.save(1, state_of(1) | {"model": {"w": torch.tensor(5.0)}})
    assert checkpoints.load_newest().state["model"]["w"] == 5.0


def test_recover_clears_what_a_kill_left_and_brings_back_a_half_replaced_one(checkpoints):
    filled(checkpoints)
    (checkpoints.directory / ".tmp-step_000004-99").mkdir()
    (checkpoints.directory / ".tmp-step_000004-99" / "state.pt").write_bytes(b"half")
    checkpoints.folder(3).rename(checkpoints.directory / ".old-step_000003")
    checkpoints.recover()
    assert checkpoints.load_newest().step == 3
    assert not list(checkpoints.directory.glob(".*"))


KILLED = """
import os, random, signal, sys, time
import torch
from pathlib import Path
from loom.checkpoint import Checkpoints

def save_forever(start):
    torch.set_num_threads(1)
    checkpoints = Checkpoints(Path(sys.argv[1]))
    checkpoints.recover()
    step = start
    while True:
        step += 1
        model = {f"w{i}": torch.full((20_000,), float(step)) for i in range(8)}
        checkpoints.save(step, {"model": model}, metric=float(step % 7))

moments, step, kills, killed = random.Random(int(sys.argv[3])), 0, int(sys.argv[2]), 0
while killed < kills or step < 3:  # on a busy machine the first ones may come before any save
    killed += 1
    pid = os.fork()
    if pid == 0:
        save_forever(step)
    time.sleep(moments.uniform(0.01, 0.12 * max(1.0, killed / kills)))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    checkpoints = Checkpoints(Path(sys.argv[1]), on_warning=sys.exit)
    loaded = checkpoints.load_newest()
    if loaded is None:
        assert step == 0, "the checkpoints are gone"
        continue
    assert loaded.step >= step, (loaded.step, step)
    step = loaded.step
    assert all((w == step).all() for w in loaded.state["model"].values())
    assert step < 3 or len(checkpoints.intact_steps()) >= 2
print(step)
"""


@pytest.mark.parametrize("kills", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_of_saving_leaves_intact_checkpoints(tmp_path, kills):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "c"), str(kills), "1"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3


class Net(nn.Module):
    def __init__(self, out=2):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, out)


def save_net(checkpoints, net, ema=None):
    return checkpoints.save(1, {"model": net.state_dict(), "ema": ema.state_dict() if ema else {}})


def test_init_from_takes_the_weights_and_names_what_it_skipped(checkpoints):
    source, target = Net(out=5), Net(out=2)
    head = target.head.weight.clone()
    folder = save_net(checkpoints, source)
    assert init_from(target, folder, skip=["head.*"]) == ["head.bias", "head.weight"]
    assert torch.equal(target.body.weight, source.body.weight)
    assert torch.equal(target.head.weight, head)


def test_init_from_prefers_the_averaged_weights_and_finds_them_in_a_run(checkpoints):
    source, average, target = Net(), Net(), Net()
    save_net(checkpoints, source, average)
    assert init_from(target, checkpoints.directory.parent) == []
    assert torch.equal(target.body.weight, average.body.weight)


def test_init_from_refuses_other_shapes_and_missing_keys_by_name(checkpoints):
    folder = save_net(checkpoints, Net(out=5))
    target = Net(out=2)
    body = target.body.weight.clone()
    with pytest.raises(UserError, match=r"head\.bias has shape \(5,\), the model \(2,\)"):
        init_from(target, folder)
    target.extra = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"extra\.bias is not in the checkpoint"):
        init_from(target, folder, skip=["head.*"])
    assert torch.equal(target.body.weight, body)
    with pytest.raises(UserError, match="no checkpoint here"):
        init_from(target, folder / "nowhere")
