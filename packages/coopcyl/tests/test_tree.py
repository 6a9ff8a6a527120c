"""The folder tree, the cache and the sampler."""

import shutil
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coopcyl.data import panoramas
from coopcyl.data.cache import StitchedCache
from coopcyl.data.depth import DepthSource
from coopcyl.data.errors import DataError
from coopcyl.data.panoramas import PanoramaReader
from coopcyl.data.sampler import SetSampler
from coopcyl.data.synth.write import SynthOptions, write_tree
from coopcyl.data.tree import AgentFrame, Frame, read_skip_list, read_tree
from coopcyl.geometry.panorama import Panorama
from loom.errors import UserError
from loom.sampling import Shard

PANORAMA = Panorama(252, 64)
NPY = DepthSource("npy")


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(small_root, tmp_path / "data")


def first(root: Path) -> AgentFrame:
    return read_tree(root, "train", NPY).frames[0].agents[0]


# The tree ----------------------------------------------------------------------------------------


def test_frames_hold_all_vehicles_of_a_time_the_ego_first(small_root):
    tree = read_tree(small_root, "train", NPY)
    assert len(tree.frames) == 4
    assert not tree.problems
    for frame in tree.frames:
        ids = [each.agent for each in frame.agents]
        assert ids == sorted(ids)
        assert 2 <= len(ids) <= 3
        assert {each.time for each in frame.agents} == {frame.time}
        assert len(frame.time) == 6


def test_roadside_units_are_last_and_never_ego(tmp_path):
    options = SynthOptions(scenarios=1, vehicles=(2, 2), width=16, lidar=(2, 4), roadside=True)
    assert write_tree(tmp_path, options) == 3
    (frame,) = read_tree(tmp_path, "train", NPY).frames
    assert [each.agent < 0 for each in frame.agents] == [False, False, True]


def test_other_tools_files_are_passed_over(root):
    frame = first(root)
    (frame.folder / "000069_additional.yaml").write_text("x: 1")
    (frame.folder / "notes.txt").write_text("hello")
    (frame.folder.parent / "thumbnails").mkdir()
    tree = read_tree(root, "train", NPY)
    assert len(tree.frames) == 4
    assert tree.notes == (f"{frame.scenario}/thumbnails: not a vehicle's folder, passed over",)


@pytest.mark.parametrize("name", ["{t}_camera2.png", "{t}_camera2_depth.npy", "{t}.yaml"])
def test_a_missing_file_is_refused_by_name_or_left_out_and_counted(root, name):
    frame = first(root)
    missing = name.format(t=frame.time)
    (frame.folder / missing).unlink()
    with pytest.raises(DataError, match=missing) as caught:
        read_tree(root, "train", NPY)
    assert "1 vehicle frames" in caught.value.message
    tree = read_tree(root, "train", NPY, strict=False)
    assert [problem.place for problem in tree.problems] == [str(frame)]
    assert missing in tree.problems[0].message
    assert frame not in {each for f in tree.frames for each in f.agents}
    whole = read_tree(root, "train", strict=False)
    assert sum(len(f.agents) for f in whole.frames) >= sum(len(f.agents) for f in tree.frames)


def test_a_scenario_without_one_camera_is_used_and_its_mask_says_so(root):
    frame = first(root)
    for path in (root / "train" / frame.scenario).glob("*/*_camera1*"):
        path.unlink()
    tree = read_tree(root, "train", NPY)
    assert "no images of camera1" in tree.notes[0]
    reader = PanoramaReader(PANORAMA, NPY)
    lacking, whole = (reader.read(tree.frames[i].agents[0]) for i in (0, -1))
    assert whole.coverage.mean() - lacking.coverage.mean() > 0.1
    right = PANORAMA.azimuths_rad()
    middle = lacking.coverage[32]
    assert not middle[(right > 1.0) & (right < 2.2)].any()


def test_the_skip_list_takes_out_frames_vehicles_and_scenarios(root, tmp_path):
    frame = first(root)
    whole = read_tree(root, "train")
    other = next(f.scenario for f in whole.frames if f.scenario != frame.scenario)
    agents = [each for f in whole.frames for each in f.agents]
    vehicle = next(
        a.agent for a in agents if a.scenario == frame.scenario and a.agent != frame.agent
    )
    lines = f"{frame}  # blurred\n\n{frame.scenario}/{vehicle}\n{other}\n"
    (tmp_path / "skip.txt").write_text(lines)
    tree = read_tree(root, "train", skip=read_skip_list(tmp_path / "skip.txt"))
    kept = [each for f in tree.frames for each in f.agents]
    assert kept == [
        a
        for a in agents
        if a.scenario == frame.scenario and a.agent != vehicle and str(a) != str(frame)
    ]
    assert tree.skipped == len(agents) - len(kept)


def test_the_skip_list_takes_out_frames_that_could_not_be_used(root):
    frame = first(root)
    (frame.folder / f"{frame.time}_camera2.png").unlink()
    for place in (str(frame), f"{frame.scenario}/{frame.agent}", frame.scenario):
        tree = read_tree(root, "train", NPY, skip={place})
        assert not tree.problems
        assert tree.skipped >= 1
        assert frame not in {each for f in tree.frames for each in f.agents}


@pytest.mark.parametrize("strict", [True, False])
def test_data_without_depth_files_says_so_and_what_to_do(root, strict):
    for path in root.glob("train/*/*/*_depth*"):
        path.unlink()
    with pytest.raises(DataError, match="camera0_depth.npy and 3 more are missing") as caught:
        read_tree(root, "train", NPY, strict=strict)
    assert "dataset.depth_format=lidar" in caught.value.hint
    assert read_tree(root, "train", DepthSource("lidar"), strict=strict).frames


def test_a_split_that_is_not_there_is_refused_with_those_that_are(root):
    with pytest.raises(UserError, match="has train"):
        read_tree(root, "validate")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="no vehicle frames"):
        read_tree(root, "empty")


# Contradictions between files --------------------------------------------------------------------


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_images_that_were_scaled_without_their_intrinsics_are_refused(root):
    frame = first(root)
    replace_in(frame.yaml, "40.0", "400.0")
    with pytest.raises(DataError, match=r"principal point at \(400, 30\).*80x60"):
        PanoramaReader(PANORAMA, NPY).read(frame)


def test_depth_of_another_size_is_refused(root):
    frame = first(root)
    path = NPY.path(frame, "camera1")
    assert path
    np.save(path, np.ones((30, 40), np.float32))
    with pytest.raises(DataError, match="40x30 pixels, the image has 80x60"):
        PanoramaReader(PANORAMA, NPY).read(frame)


def test_an_image_without_its_camera_in_the_yaml_is_refused(root):
    frame = first(root)
    replace_in(frame.yaml, "camera3:", "camera7:")
    with pytest.raises(DataError, match="`camera3` is missing"):
        PanoramaReader(PANORAMA, NPY).read(frame)


# The cache ---------------------------------------------------------------------------------------


def test_a_cached_view_is_bit_for_bit_the_stitched_one(root, tmp_path):
    frame = first(root)
    reader = PanoramaReader(PANORAMA, NPY)
    cache = StitchedCache(tmp_path / "cache", reader)
    views = [reader.read(frame), cache.read(frame), cache.read(frame)]
    for view in views[1:]:
        np.testing.assert_array_equal(view.rgb, views[0].rgb)
        np.testing.assert_array_equal(view.range_m, views[0].range_m)
        np.testing.assert_array_equal(view.points(), views[0].points())
        np.testing.assert_array_equal(view.pose_world_from_rig, views[0].pose_world_from_rig)
    assert (cache.counts.misses, cache.counts.hits) == (1, 1)


def test_views_stay_in_memory_as_far_as_there_is_room(root, tmp_path):
    agents = [agent for frame in read_tree(root, "train").frames for agent in frame.agents][:2]
    wide = Panorama(1008, 252)  # 1.3 MB of colours and ranges
    cache = StitchedCache(tmp_path / "cache", PanoramaReader(wide, NPY), memory_mb=2)
    once = [cache.read(agent) for agent in agents]
    again = [cache.read(agent) for agent in agents]
    assert (cache.counts.misses, cache.counts.hits) == (2, 1)  # there was room for one
    for view, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(view.rgb, other.rgb)
        np.testing.assert_array_equal(view.range_m, other.range_m)
        np.testing.assert_array_equal(view.pose_world_from_rig, other.pose_world_from_rig)


class _Slow(OrderedDict):
    """Gives another thread time between the question for a key and its use."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        time.sleep(0.002)
        return found


def test_two_threads_may_read_vehicles_of_different_rigs(root, monkeypatch):
    frame = first(root)
    rigs = [replace(frame, cameras=cameras) for cameras in (frame.cameras, frame.cameras[:2])]
    reader = PanoramaReader(Panorama(64, 16), NPY)
    alone = [reader.read(each).coverage for each in rigs]
    stitched = [reader.stitch(each).rig for each in rigs]
    monkeypatch.setattr(panoramas, "_TABLES_KEPT", 1)
    monkeypatch.setattr(reader, "_tables", _Slow())
    with ThreadPoolExecutor(2) as pool:
        turns = [pool.submit(reader.table, stitched[i // 2 % 2]) for i in range(60)]
        for i, turn in enumerate(turns):
            np.testing.assert_array_equal(turn.result().coverage, alone[i // 2 % 2])


def test_other_settings_and_touched_files_never_meet_an_old_entry(root, tmp_path):
    frame = first(root)
    paths = {
        StitchedCache(tmp_path, PanoramaReader(*settings)).path(frame)
        for settings in [
            (PANORAMA, NPY, 100.0),
            (PANORAMA, NPY, 99.0),
            (PANORAMA, DepthSource("carla_rgb24"), 100.0),
            (Panorama(252, 64, "cylinder"), NPY, 100.0),
            (Panorama(252, 64, elevation_max_deg=41.0), NPY, 100.0),
        ]
    }
    image = frame.image("camera0")
    image.write_bytes(image.read_bytes() + b"")
    paths.add(StitchedCache(tmp_path, PanoramaReader(PANORAMA, NPY)).path(frame))
    assert len(paths) == 6


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_half_written_entry_is_refused_or_made_again_as_the_user_says(root, tmp_path, damage):
    frame = first(root)
    reader = PanoramaReader(PANORAMA, NPY)
    strict = StitchedCache(tmp_path / "cache", reader)
    good = strict.read(frame)
    path = strict.path(frame)
    data = path.read_bytes()
    flipped = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    path.write_bytes({"cut": data[:-100], "flip": flipped, "empty": b""}[damage])
    with pytest.raises(DataError, match=path.name):
        strict.read(frame)
    lenient = StitchedCache(tmp_path / "cache", reader, strict=False)
    np.testing.assert_array_equal(lenient.read(frame).rgb, good.rgb)
    assert lenient.counts.rebuilt == 1
    assert path.read_bytes() == data


def test_the_cache_gives_more_than_ten_panoramas_per_second(root, tmp_path):
    frame = first(root)
    cache = StitchedCache(tmp_path / "cache", PanoramaReader(Panorama(), NPY))
    cache.read(frame)
    begin = time.process_time()
    for _ in range(10):
        cache.read(frame).depth_valid.any()
    assert 10 / (time.process_time() - begin) > 10


# The sampler -------------------------------------------------------------------------------------


def made_up_frames(sizes: list[int], roadside: bool = False) -> list[Frame]:
    frames = []
    for number, size in enumerate(sizes):
        ids = [*range(10, 10 + size), *([-1] if roadside else [])]
        agents = tuple(AgentFrame(Path(), "train", f"s{number}", i, "000069", ()) for i in ids)
        frames.append(Frame(f"s{number}", "000069", agents))
    return frames


def test_a_step_is_the_same_for_any_number_of_processes():
    sampler = SetSampler(made_up_frames([2, 3, 4, 5] * 5), 7, 12, (2, 4))
    for step in range(8):
        alone = sampler.sets(step)
        for world in (2, 3, 4):
            parts = [sampler.sets(step, Shard(rank, world)) for rank in range(world)]
            assert [each for part in parts for each in part] == alone


def test_each_epoch_shows_each_frame_once():
    sampler = SetSampler(made_up_frames([2] * 12), 3, 4)
    for epoch in range(3):
        seen = [s.agents[0].scenario for k in range(3) for s in sampler.sets(3 * epoch + k)]
        assert len(set(seen)) == 12


def test_a_set_has_different_vehicles_and_its_reference_is_no_roadside_unit():
    sampler = SetSampler(made_up_frames([2, 3] * 4, roadside=True), 1, 8, (2, 3))
    counts = set()
    references = set()
    for step in range(30):
        for each in sampler.sets(step):
            ids = [agent.agent for agent in each.agents]
            assert len(set(ids)) == len(ids) == sampler.view_count(step)
            assert ids[0] >= 0
            references.add(ids[0])
        counts.add(sampler.view_count(step))
    assert counts == {2, 3}
    assert len(references) == 3


def test_one_vehicle_only_is_refused_with_the_numbers():
    with pytest.raises(UserError, match="no frame has 2 vehicles; the largest of 3 has 1"):
        SetSampler(made_up_frames([1, 1, 1]), 0, 2)


def test_the_generator_writes_the_same_bytes_and_refuses_to_overwrite(tmp_path):
    options = SynthOptions(scenarios=1, vehicles=(2, 2), width=16, lidar=(2, 4))
    for name in "ab":
        write_tree(tmp_path / name, options)
    a, b = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*.*")
            if p.is_file()
        }
        for n in "ab"
    )
    assert a == b
    assert len(a) == 1 + 2 * (2 + 4 * 3)
    with pytest.raises(UserError, match="it is there already"):
        write_tree(tmp_path / "a", options)
