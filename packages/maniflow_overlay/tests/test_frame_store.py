"""The frame store, its paths, its windows and zarr: against arrays in memory, kills and damage."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from loom.errors import UserError
from maniflow_overlay.cli import app
from maniflow_overlay.data import convert as converting
from maniflow_overlay.data import frame_store
from maniflow_overlay.data.convert import Rows, Source, convert
from maniflow_overlay.data.frame_store import FRAMES, MANIFEST, STATE, FrameStore, StoreShape
from maniflow_overlay.data.path_layers import (
    FOLDER,
    LAYERS,
    OFFSET,
    STATUS,
    PathLayers,
    write_layers,
)
from maniflow_overlay.data.robotwin import find_episodes, read_episode
from maniflow_overlay.data.synthetic import Scene, write_task
from maniflow_overlay.overlay.drawing import draw_path_rgb
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from made_up_store import SHAPE, attach, content, make_store, some_paths, sources


@pytest.fixture
def store(tmp_path) -> FrameStore:
    return make_store(tmp_path)


def test_rows_come_back_as_they_went_in(store):
    frames, state, action = content()
    assert len(store) == 59
    assert store.begins.tolist() == [0, 20, 27, 28]
    rows = np.random.default_rng(5).integers(0, 59, 300)
    assert np.array_equal(store.read_frames(rows), frames[rows])
    assert np.array_equal(store.state, state)
    assert np.array_equal(store.action, action)
    assert store.episode_of(np.array([0, 19, 20, 26, 27, 28, 58])).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert store.episodes[1].instructions == ("do",)
    assert store.verify() == []


def test_rows_outside_and_wrong_targets_are_refused(store):
    for row in (-1, 59):
        with pytest.raises(IndexError):
            store.read_frames(np.array([row]))
    with pytest.raises(ValueError, match="cannot be read into"):
        store.read_frames(np.array([0]), np.empty((1, 16, 20, 3), np.float32))
    out = np.empty((2, 16, 20, 3), np.uint8)
    assert store.read_frames(np.array([3, 4]), out) is out


def digest_of(store: FrameStore, queue) -> None:
    queue.put(hashlib.sha256(store.read_frames(np.arange(59)).tobytes()).hexdigest())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_process_of_any_start_method_reads_the_same(store, method):
    expected = hashlib.sha256(content()[0].tobytes()).hexdigest()
    store.read_frames(np.arange(10))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=digest_of, args=(store, queue))
    worker.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        worker.join(timeout=60)
        if worker.is_alive():
            worker.kill()
    assert worker.exitcode == 0
    assert np.array_equal(store.read_frames(np.arange(59)), content()[0])


def test_a_pickled_store_reads_by_itself(store):
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.read_frames(np.array([58])), content()[0][[58]])
    layers = attach(store)
    again = pickle.loads(pickle.dumps(layers))
    assert np.array_equal(again.read(7).value, layers.read(7).value)


def test_reading_holds_no_frames_in_memory(tmp_path):
    """40 MB of frames pass through a process that does not grow by them."""
    rows = 40
    shape = StoreShape(1000, 340, 2)
    blank = np.zeros((340, 1000, 3), np.uint8)
    (tmp_path / "s").write_bytes(b"")
    vectors = np.zeros((rows, 2), np.float32)
    digest = hashlib.sha256(b"").hexdigest()

    def read() -> Rows:
        pictures = (blank + np.uint8(n) for n in range(rows))
        return Rows("t", 0, "s", digest, pictures, vectors, vectors, ())

    convert([Source("t", 0, tmp_path / "s", read)], tmp_path / "store", shape, about={})
    opened = FrameStore(tmp_path / "store")
    out = np.empty((1, 340, 1000, 3), np.uint8)
    opened.read_frames(np.array([0]), out)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    before = resident()
    for row in range(rows):
        assert opened.read_frames(np.array([row]), out)[0, 5, 5, 0] == row
    assert resident() - before < 8e6


CONVERT = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("test_frame_store", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("ready", flush=True)
module.convert(module.sources(Path({work!r}), 0.15), Path({store!r}), module.SHAPE, about={{}})
"""


def test_a_conversion_killed_twice_ends_in_the_same_bytes(tmp_path, store):
    reference = {path.name: path.read_bytes() for path in sorted((tmp_path / "store").iterdir())}
    target = tmp_path / "again"
    code = CONVERT.format(
        folder=str(Path(__file__).parent), file=__file__, work=str(tmp_path), store=str(target)
    )
    for episodes in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            journal = target / converting.JOURNAL
            if journal.is_file() and journal.read_bytes().count(b"\n") > episodes:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    with (target / FRAMES).open("ab") as stream:
        stream.write(b"torn")  # an episode under way
    with pytest.raises(UserError, match="was not finished"):
        FrameStore(target)
    assert convert(sources(tmp_path), target, SHAPE, about={}) <= 1
    assert {path.name: path.read_bytes() for path in sorted(target.iterdir())} == reference


def interrupted(tmp_path: Path, number: int = 2) -> Path:
    """A conversion, or the next part of it, that failed at its third or another episode."""
    made = sources(tmp_path)

    def fail() -> Rows:
        raise UserError(f"episode {number} cannot be read")

    made[number] = Source(made[number].task, made[number].number, made[number].path, fail)
    with pytest.raises(UserError, match=f"episode {number}"):
        convert(made, tmp_path / "half", SHAPE, about={"camera": "head"})
    return tmp_path / "half"


def test_a_torn_line_of_the_journal_is_forgotten_however_often_the_conversion_stops(tmp_path):
    """Without that, the next line would be joined to it, or close it, and neither can be read."""
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / converting.JOURNAL).write_bytes(b'{"settings": {"wid')
    for number in (1, 2, 3):
        interrupted(tmp_path, number)
        with (folder / converting.JOURNAL).open("ab") as stream:
            stream.write(b'{"task": "t", "num')
    assert convert(sources(tmp_path), folder, SHAPE, about={"camera": "head"}) == 1
    assert np.array_equal(FrameStore(folder).read_frames(np.arange(59)), content()[0])


def test_a_conversion_goes_on_only_with_the_same_settings_and_sources(tmp_path):
    folder = interrupted(tmp_path)
    made = sources(tmp_path)
    about = {"camera": "head"}
    with pytest.raises(UserError, match="other settings"):
        convert(made, folder, SHAPE, about={"camera": "left"})
    with pytest.raises(UserError, match="other settings"):
        convert(made, folder, StoreShape(20, 20, 14), about=about)
    with pytest.raises(UserError, match="other episodes"):
        convert(made[1:], folder, SHAPE, about=about)
    made[0].path.write_text("changed", encoding="utf-8")
    with pytest.raises(UserError, match="source0.txt has changed"):
        convert(made, folder, SHAPE, about=about)
    made = sources(tmp_path)
    for name in (FRAMES, STATE):
        with (folder / name).open("ab") as stream:
            stream.write(b"part of an episode")
    assert convert(made, folder, SHAPE, about=about) == 2
    assert np.array_equal(FrameStore(folder).read_frames(np.arange(59)), content()[0])
    with pytest.raises(UserError, match="finished store"):
        convert(made, folder, SHAPE, about=about)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="not empty: thesis.tex"):
        convert(sources(tmp_path), tmp_path / "mine", SHAPE, about={})


def test_a_state_that_is_not_finite_or_of_another_length_stops_the_conversion(tmp_path):
    good = sources(tmp_path)[0]
    for change, named in (
        ("nan", "row 3, joint 2 is not finite"),
        ("short", "pictures and"),
        ("wide", "expected"),
    ):

        def read(change=change) -> Rows:
            rows = good.read()
            state = rows.state.copy()
            if change == "nan":
                state[3, 2] = np.nan
            part = slice(None, -1) if change == "short" else slice(None)
            width = 13 if change == "wide" else 14
            return Rows(
                rows.task,
                0,
                rows.source,
                "",
                rows.pictures,
                state[part, :width],
                rows.action[part, :width],
                (),
            )

        with pytest.raises(UserError, match=named):
            convert([Source("t", 0, good.path, read)], tmp_path / change, SHAPE, about={})


def edit_manifest(store: FrameStore, **fields) -> None:
    path = store.folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"version": 2}, "version 2, this program reads 1"),
        ({"format": "x"}, "does not describe"),
        ({"width": 21}, "frames.u8 has"),
        ({"width": -1}, "damaged manifest"),
        ({"rows": 60}, "add up"),
        ({"episodes": []}, "add up"),
        ({"episodes": [3]}, "damaged manifest"),
        ({"vector": "14"}, "damaged manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(store, fields, named):
    edit_manifest(store, **fields)
    with pytest.raises(UserError, match=named):
        FrameStore(store.folder)


def test_random_damage_of_the_manifest_ends_in_user_errors(store):
    whole = (store.folder / MANIFEST).read_bytes()
    rng = random.Random(4)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (store.folder / MANIFEST).write_bytes(damaged[: rng.randint(1, len(damaged))])
        try:
            FrameStore(store.folder)
        except UserError:
            continue


def test_a_changed_byte_is_found_and_its_episode_named(store):
    path = store.folder / FRAMES
    data = bytearray(path.read_bytes())
    data[22 * SHAPE.frame_bytes + 5] ^= 1
    path.write_bytes(data)
    assert [text.split(": ")[1] for text in store.verify()] == [
        "episode 1 of click_bell is damaged"
    ]
    (store.folder / STATE).write_bytes(np.full((59, 14), np.nan, "<f4").tobytes())
    with pytest.raises(UserError, match="row 0 is not finite"):
        FrameStore(store.folder)


def test_a_file_that_shrinks_under_an_open_store_is_noticed(store):
    os.truncate(store.folder / FRAMES, SHAPE.frame_bytes * 3 - 1)
    store.read_frames(np.array([0, 1]))
    with pytest.raises(UserError, match="row 2 cannot be read whole"):
        store.read_frames(np.array([2]))


def test_large_parts_are_verified_block_by_block(store, monkeypatch):
    monkeypatch.setattr(frame_store, "_BLOCK", 64)
    assert store.verify() == []


def test_a_store_with_bytes_behind_its_rows_is_refused(store):
    with (store.folder / "action.f32").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(UserError, match="action.f32 has .* bytes"):
        FrameStore(store.folder)


def test_layers_whose_writing_was_interrupted_are_not_taken_for_old_ones(store):
    attach(store)

    class Torn:
        def __len__(self):
            return len(store)

        def __iter__(self):
            yield None
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_layers(store, Torn(), ["absent"] * len(store), "torn")
    with pytest.raises(UserError, match="has no paths"):
        PathLayers(store)


def test_painted_frames_are_the_frames_with_the_path_drawn_in(store):
    layers = attach(store)
    frames = content()[0]
    rows = np.array([1, 5, 0, 4, 33, 58])
    painted = layers.paint(store.read_frames(rows), rows)
    for image, row in zip(painted, rows, strict=True):
        path = some_paths()[row]
        expected = draw_path_rgb(frames[row].copy(), path) if path else frames[row]
        assert np.array_equal(image, expected)
    assert layers.counts == {"ok": 48, "timeout": 11}
    assert layers.verify() == []


def test_layers_that_are_missing_or_damaged_are_refused(store):
    with pytest.raises(UserError, match="has no paths"):
        PathLayers(store)
    layers = attach(store)
    folder = store.folder / FOLDER
    data = bytearray((folder / LAYERS).read_bytes())
    data[-1] ^= 1
    (folder / LAYERS).write_bytes(data)
    assert "layers.bin is damaged" in layers.verify()[0]
    (folder / LAYERS).write_bytes(data[:-7])
    with pytest.raises(UserError, match="damaged"):
        PathLayers(store)
    (folder / LAYERS).write_bytes(data)
    offset = np.fromfile(folder / OFFSET, "<i8")
    (folder / OFFSET).write_bytes((offset + (np.arange(len(offset)) == 3)).tobytes())
    with pytest.raises(UserError, match="damaged"):
        PathLayers(store)
    status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    for key, value in (("version", 9), ("width", 3)):
        (folder / STATUS).write_text(json.dumps(status | {key: value}), encoding="utf-8")
        with pytest.raises(UserError, match="version 9|another size"):
            PathLayers(store)


def test_the_data_commands_from_episodes_to_a_verified_store(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    write_task(tmp_path / "episodes", "click_bell", 2, Scene(steps=5))
    st, paths = tmp_path / "st", tmp_path / "p.jsonl"
    done = run("data", "convert", tmp_path / "episodes", st, "--size", "64x48", "--dry-run")
    assert "8 frames of 64x48" in done.output
    assert not st.exists()
    done = run("data", "convert", tmp_path / "episodes", st, "--size", "64x48")
    assert done.exit_code == 0, done.output
    store = FrameStore(st)
    episode = read_episode(find_episodes(tmp_path / "episodes")[1])
    expected = cv2.resize(episode.picture_rgb(2), (64, 48), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(store.read_frames(np.array([6]))[0], expected)
    assert np.array_equal(store.action[4:], episode.action)
    run("paths", "oracle", tmp_path / "episodes", paths)
    done = run("data", "attach-paths", st, paths)
    assert done.exit_code == 0, done.output
    assert "paths: 8 oracle" in run("data", "inspect", st).output
    facts = json.loads(run("data", "inspect", st, "--json").output)
    assert (facts["frames"], facts["width"], facts["paths"]["oracle"]) == (8, 64, 8)
    assert facts["tasks"][0]["longest"] == 4
    assert "all as they were written" in run("data", "verify", st).output
    assert json.loads(run("data", "verify", st, "--json").output) == {"frames": 8, "damages": []}
    (st / FOLDER / LAYERS).write_bytes(b"\0" * (st / FOLDER / LAYERS).stat().st_size)
    assert "damaged" in run("data", "verify", st).stderr
    assert len(json.loads(run("data", "verify", st, "--json").stdout)["damages"]) == 1
    paths.write_text("", encoding="utf-8")
    assert "no path for any frame" in run("data", "attach-paths", st, paths).stderr
    assert run("data", "convert", tmp_path / "episodes", st, "--size", "big").exit_code == 2
