"""What a model learns: boundaries that were planted, and to earn reward."""

import json
import time

import numpy as np
import pytest
import torch
from loom.config import resolve
from loom.evaluation.statistics import auc
from loom.loop import Losses, Term
from pinpad.boundary.matching import match, top
from pinpad.boundary.segments import shape
from pinpad.cli import app
from pinpad.data.planted import EVENT, planted_episodes
from pinpad.data.windows import WindowSampler
from pinpad.score import score_episodes
from pinpad.sweep.conditions import BOUNDARY4
from pinpad.tensors import pixel_statistics, seen
from pinpad.train_config import PRESETS, TrainConfig
from pinpad.train_world import PRECISIONS, new_model
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "vta_abs_belief=32", "vta_obs_belief=32", "vta_abs_stoch=8", "vta_obs_stoch=8",
    "dyn_hidden=32", "batch_size=16", "batch_length=16", "kl_free=0",
)  # fmt: skip
CONDITIONS = {
    name: [f"{key}={value}" for key, value in each.items()]
    for name, each in BOUNDARY4.items()
    if each["dynamics_type"] == "vta"
}


def settings(*overrides, seed=0):
    common = ("vta=detect", "batch_length=32", "vta_boundary_rate=0.075", f"seed={seed}")
    return resolve(TrainConfig, None, [*common, *overrides], groups=PRESETS).config


def learner(config):
    """A world model on planted sequences, and a function that makes an update of it."""
    sampler = WindowSampler(
        list(planted_episodes(60, seed=config.seed)),
        batch_size=config.batch_size,
        batch_length=config.batch_length,
        reward_windows=0,
        seed=config.seed,
    )
    draws = torch.Generator().manual_seed(config.seed)
    model = new_model(config, sampler.image[0].size, draws)
    model.fit_pixels(*pixel_statistics(sampler.image))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.model_lr, eps=1e-8)
    precision = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    dtype = precision[PRECISIONS[config.precision]]

    def update(step):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            parts, _ = model.losses(seen(sampler.batch(step)), draws)
        total = Losses({n: Term(p.value, p.weight) for n, p in parts.items()}).total
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        return float(total.detach())

    return model, update


def judged(model):
    """F1 within one step at the true rate, and AUC, on sequences that were not seen."""
    episodes = list(planted_episodes(32, length=100, seed=10_000))
    scores = [row["score"] for row in score_episodes(model.eval(), episodes)["posterior"]]
    truths = [episode.events[EVENT] for episode in episodes]
    f1 = [match(top(s, int(t.sum())), t, 1).f1 for s, t in zip(scores, truths, strict=True)]
    ranked = auc(np.concatenate([s[1:] for s in scores]), np.concatenate([t[1:] for t in truths]))
    return np.mean(f1), ranked


def test_planted_boundaries_are_ranked_first():
    model, update = learner(settings(*SMALL))
    for step in range(140):
        update(step)
    f1, ranked = judged(model)
    assert ranked >= 0.8
    assert f1 >= 0.5


@pytest.mark.parametrize(
    ("flag", "made"),
    [
        ("clock", ("vta_boundary_force_scale=10", "vta_max_seg_len=13")),
        ("silent", ("vta_boundary_rate=0.0001", "vta_boundary_scale=100")),
        ("always_on", ("vta_boundary_rate=0.99", "vta_boundary_scale=100")),
    ],
)
def test_a_detector_that_has_collapsed_is_flagged(flag, made):
    model, update = learner(settings(*SMALL, *made))
    for step in range(40):
        update(step)
    episodes = list(planted_episodes(8, length=200, seed=10_000))
    rows = score_episodes(model.eval(), episodes)["posterior"]
    assert shape([np.append(False, row["score"][1:] > 0.5) for row in rows]).flags == (flag,)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_boundaries_are_found_within_a_minute(seed):
    model, update = learner(settings(seed=seed))
    began, step = time.process_time(), 0
    while time.process_time() - began < 45:
        update(step)
        step += 1
    f1, ranked = judged(model)
    assert f1 >= 0.95
    assert ranked >= 0.99


@pytest.mark.parametrize("precision", [16, "bf16", 32])
@pytest.mark.parametrize(
    "updates", [25, pytest.param(20_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("name", CONDITIONS)
def test_the_conditions_of_the_notes_stay_finite(name, updates, precision):
    tiny = ("batch_size=4", "batch_length=10", "dyn_hidden=16", "vta_abs_belief=16",
            "vta_obs_belief=16", "vta_abs_stoch=4", "vta_obs_stoch=4")  # fmt: skip
    _, update = learner(settings(*CONDITIONS[name], *tiny, f"precision={precision}"))
    for step in range(updates):
        assert np.isfinite(update(step)), step


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", ["rssm", "vta"])
def test_an_agent_earns_ten_times_what_uniform_play_does(dynamics, tmp_path):
    done = CliRunner().invoke(
        app, ["train", "--dynamics-type", dynamics, "--run-dir", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "run" / "evaluation" / "returns.json").read_text())["rows"]
    mean = {row["who"]: row["mean"] for row in rows}
    assert mean["agent"] >= 10 * mean["random"]
