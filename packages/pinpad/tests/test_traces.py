import hashlib
import json

import numpy as np
import pytest
from loom.errors import UserError
from pinpad import doctor
from pinpad.cli import app
from pinpad.data.traces import read_trace, replay
from pinpad.envs.layouts import LAYOUTS
from typer.testing import CliRunner


@pytest.fixture
def recorded(slow_pinpad, tmp_path):
    """A trace of the slow reference in a file, and a function that writes an altered one."""
    rng = np.random.default_rng(5)
    env = slow_pinpad("three", length=300)
    names = ("action", "reset", "reward", "is_first", "is_last", "position")
    rows = {name: [] for name in (*names, "sequence_length", "countdown")}
    spawns, digests, images = [], [], hashlib.sha256()

    def draw():
        spawns.append(int(rng.integers(168)))
        return spawns[-1]

    over = True
    for step in range(1_000):
        action, reset = int(rng.integers(5)), bool(rng.random() < 0.005)
        first, reward = over or reset, 0.0
        if first:
            env.reset(draw())
        else:
            reward = 10.0 * env.step(action, draw)["reward"]
        over = not first and env.steps >= 300
        values = (action, reset, reward, first, over, env.player, len(env.history), env.countdown)
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
        images.update(env.image().tobytes())
        if step % 500 == 499:
            digests.append(images.hexdigest())
    arrays = {
        "action": np.array(rows["action"], np.int8),
        "reset": np.array(rows["reset"]),
        "reward": np.array(rows["reward"], np.float32),
        "is_first": np.array(rows["is_first"]),
        "is_last": np.array(rows["is_last"]),
        "position": np.array(rows["position"], np.int8),
        "sequence_length": np.array(rows["sequence_length"], np.int8),
        "countdown": np.array(rows["countdown"], np.int8),
        "spawn_index": np.array(spawns, np.int16),
        "length": np.array(300),
        "image_sha256_every_500": np.array(digests),
    }

    def write(name="three_a.npz", drop=(), **altered):
        path = tmp_path / name
        kept = {key: value for key, value in (arrays | altered).items() if key not in drop}
        np.savez_compressed(path, allow_pickle=False, **kept)
        return path

    return arrays, write


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_original_s_traces_agree_at_every_step_images_included(layout, pinpad_traces):
    trace = read_trace(pinpad_traces / f"{layout}_seed0.npz")
    assert len(trace) == 20_000
    assert len(trace.image_digests) == 40
    assert replay(trace) is None


def test_a_trace_of_the_written_rules_agrees(recorded):
    arrays, write = recorded
    trace = read_trace(write())
    assert (trace.layout, trace.length, len(trace)) == ("three", 300, 1_000)
    assert arrays["is_first"].sum() > 3
    assert replay(trace) is None


@pytest.mark.parametrize(
    "field", ["reward", "is_first", "is_last", "position", "sequence_length", "countdown"]
)
def test_the_first_difference_is_named(recorded, field):
    arrays, write = recorded
    altered = arrays[field].copy()
    for step in (700, 421):
        altered[step] = ~altered[step] if altered.dtype == bool else altered[step] + 1
    mismatch = replay(read_trace(write(**{field: altered})))
    assert mismatch is not None
    assert (mismatch.step, mismatch.field) == (421, field)
    assert "step 421" in str(mismatch)


def test_another_picture_is_found_in_its_block_of_500(recorded):
    arrays, write = recorded
    digests = arrays["image_sha256_every_500"].copy()
    digests[1] = "0" * 64
    mismatch = replay(read_trace(write(image_sha256_every_500=digests)))
    assert mismatch is not None
    assert (mismatch.step, mismatch.field) == (999, "images since step 500")


def test_too_many_and_too_few_spawns_are_differences(recorded):
    arrays, write = recorded
    spawns = arrays["spawn_index"]
    more = replay(read_trace(write(spawn_index=np.append(spawns, 0).astype(np.int16))))
    assert more is not None
    assert (more.step, more.field) == (1_000, "spawn_index")
    fewer = replay(read_trace(write(spawn_index=spawns[:-1])))
    assert fewer is not None
    assert fewer.field == "spawn_index"


def test_bad_traces_are_refused_by_name(recorded, tmp_path):
    arrays, write = recorded
    with pytest.raises(UserError, match="without countdown"):
        read_trace(write(drop=["countdown"]))
    with pytest.raises(UserError, match=r"reward is .* expected shape \(1000,\)"):
        read_trace(write(reward=arrays["reward"][:-1]))
    with pytest.raises(UserError, match=r"action\[0\] is 9"):
        read_trace(write(action=np.full(1_000, 9, np.int8)))
    with pytest.raises(UserError, match="layout is neither"):
        read_trace(write(name="mine.npz"))
    assert read_trace(write(name="mine.npz", layout=np.array("three"))).layout == "three"
    (tmp_path / "three_cut.npz").write_bytes(write().read_bytes()[:900])
    with pytest.raises(UserError, match="not a readable"):
        read_trace(tmp_path / "three_cut.npz")


def run_doctor(monkeypatch, *arguments):
    monkeypatch.setattr("loom.doctor.core_checks", lambda distribution: [])
    monkeypatch.setattr(doctor, "ROOMS", 2)
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_the_doctor_replays_a_folder_and_exits_1_on_a_difference(recorded, monkeypatch, tmp_path):
    arrays, write = recorded
    write()
    good = run_doctor(monkeypatch, "--traces", tmp_path)
    assert good.exit_code == 0, good.output
    assert "1,000 steps and 2 image digests of three agree" in good.output
    write(name="three_b.npz", countdown=arrays["countdown"] + 1)
    bad = run_doctor(monkeypatch, "--traces", tmp_path, "--json")
    assert bad.exit_code == 1
    rows = {row["name"]: row for row in json.loads(bad.stdout)}
    assert rows["trace three_a"]["level"] == "ok"
    assert "step 0: countdown is 0, recorded is 1" in rows["trace three_b"]["detail"]


def test_the_doctor_wants_traces_where_it_is_sent_for_them(monkeypatch, tmp_path):
    done = run_doctor(monkeypatch, "--traces", tmp_path)
    assert done.exit_code == 2
    assert "no .npz traces" in done.output


def test_the_doctor_fails_an_environment_that_never_pays(monkeypatch):
    assert doctor.check_oracle().level == "ok"
    monkeypatch.setattr("pinpad.envs.vector.REWARD", 0.0)
    finding = doctor.check_oracle()
    assert finding.level == "fail"
    assert "three, four, five, six, seven, eight" in finding.detail
