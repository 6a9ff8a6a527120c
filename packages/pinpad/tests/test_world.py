import json
import shutil

import numpy as np
import pytest
import torch
from loom.errors import UserError
from loom.record import read_records
from pinpad.cli import app
from pinpad.config import WorldConfig
from pinpad.data.collect import collect, write_new
from pinpad.data.episodes import read_episode
from pinpad.data.planted import planted_episodes
from pinpad.data.players import parse_mix
from pinpad.models.frames import begin_with, frame_decoder, frame_encoder
from pinpad.models.rssm import RssmSettings
from pinpad.models.vta import Vta, VtaSettings
from pinpad.models.world import Seen, WorldModel, squared_error
from pinpad.score import restore_world, score_folder
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [
    "dyn_deter=16", "dyn_hidden=16", "dyn_stoch=4", "dyn_discrete=4", "vta_abs_belief=16",
    "vta_abs_stoch=4", "vta_obs_belief=16", "vta_obs_stoch=4", "batch_size=8", "batch_length=10",
    "time_limit=60", "prefill=240", "heldout_episodes=3", "updates=4", "eval_every=2",
    "log_every=1", "gates=[]",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def seen(steps=6, batch=4, pixels=12):
    generator = torch.Generator().manual_seed(0)
    return Seen(
        torch.rand(steps, batch, pixels, generator=generator),
        torch.eye(5)[torch.randint(5, (steps, batch), generator=generator)],
        torch.zeros(steps, batch),
        torch.zeros(steps, batch, dtype=torch.bool),
    )


@pytest.mark.parametrize("settings", [RssmSettings(), VtaSettings()])
def test_the_loss_has_the_parts_it_says(settings):
    torch.manual_seed(0)
    model, windows = WorldModel(12, 5, settings), seen()
    parts, rollout = model.losses(windows, torch.Generator().manual_seed(1))
    probability = model.decoder(rollout.feature).sigmoid()
    entropy = windows.frame * probability.log() + (1 - windows.frame) * (1 - probability).log()
    torch.testing.assert_close(parts["image"].value, -entropy.sum(-1).mean())
    assert parts["image"].weight == 3
    # A head without an opinion is as wrong as a uniform guess among its bins.
    assert parts["reward"].value.item() == pytest.approx(np.log(63), rel=1e-4)
    assert rollout.losses.items() <= parts.items()


def test_a_fresh_decoder_predicts_the_mean_frame_and_the_encoder_sees_deviations():
    torch.manual_seed(0)
    model, windows = WorldModel(12, 5, RssmSettings()), seen()
    mean, std = torch.linspace(0.1, 0.9, 12), torch.linspace(0.0, 0.4, 12)
    model.fit_pixels(mean, std)
    zero = torch.zeros_like(model.rollout(windows).feature)
    torch.testing.assert_close(model.predicted_frame(zero)[0, 0], mean, rtol=1e-3, atol=2e-2)
    torch.testing.assert_close(
        model.embed(windows.frame), model.encoder((windows.frame - mean) / (std + 0.1))
    )


@pytest.mark.parametrize("side", [8, 16, 64])
def test_convolutions_see_a_frame_as_it_was_flattened_and_draw_one_back(side):
    torch.manual_seed(0)
    pixels = side * side * 3
    encoder, width = frame_encoder(pixels, 0, depth=4)
    decoder = frame_decoder(6, pixels, 0, depth=4)
    frame = torch.rand(2, 3, pixels, requires_grad=True)
    embedding = encoder(frame)
    assert embedding.shape == (2, 3, width)
    assert decoder(torch.randn(2, 3, 6)).shape == frame.shape
    image = frame.unflatten(-1, (side, side, 3)).movedim(-1, -3)
    for i, j in ((0, 0), (1, 2)):
        torch.testing.assert_close(encoder.layers(image[i, j][None])[0].flatten(), embedding[i, j])
    # A pixel of the upper left corner reaches only the upper left of the first layer.
    first = encoder.layers[0](image[0])
    (gradient,) = torch.autograd.grad(first[:, :, 0, 0].sum(), frame)
    reached = gradient[0, 0].reshape(side, side, 3).abs().sum(-1) > 0
    assert reached[:3, :3].all()
    assert reached.sum() == 9
    begin_with(decoder, torch.full((pixels,), 0.25))
    for parameter in decoder.layers.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(decoder(torch.zeros(1, 6)).sigmoid(), torch.full((1, pixels), 0.25))


@pytest.mark.parametrize("pixels", [12, 7 * 7 * 3, 24 * 24 * 3, 4 * 4 * 3])
def test_convolutions_refuse_frames_that_do_not_halve(pixels):
    with pytest.raises(ValueError, match="not square with a side of"):
        frame_encoder(pixels, 0, depth=4)


def test_the_squared_error_is_summed_over_pixels():
    assert squared_error(torch.full((2, 3), 0.5), torch.zeros(2, 3)).tolist() == [0.75, 0.75]


@pytest.mark.parametrize("dynamics", ["rssm", "vta"])
def test_the_command_trains_resumes_to_the_bit_and_scores(dynamics, here):
    common = [f"dynamics_type={dynamics}", *TINY]
    whole = run("train", "wm_only=true", "--run-dir", "whole", *common)
    assert whole.exit_code == 0, whole.output
    assert (here / "whole" / "report.html").is_file()
    begun = run("train", "wm_only=true", "--run-dir", "parts", *common)
    assert begun.exit_code == 0, begun.output
    shutil.rmtree(here / "parts" / "checkpoints" / "step_000004")  # as if it had ended at 2
    resumed = run("train", "--run-dir", "parts", "--resume")
    assert resumed.exit_code == 0, resumed.output
    one, two = (read_records(here / name)[-1] for name in ("whole", "parts"))
    assert json.loads((here / "parts" / "run.json").read_text())["resumes"][0]["step"] == 2
    measured = [key for key in one if key.startswith(("metric/", "loss/", "baseline/"))]
    assert {key: one[key] for key in measured} == {key: two[key] for key in measured}
    assert "metric/reward_ap_open_loop" in one
    assert one["metric/reconstruction_error"] is not None

    folder = here / "episodes"
    collect(folder, "three", parse_mix("babble"), 3, length=50, size=16, seed=0)
    done = run("boundaries", "score", "whole", folder, here / "scores")
    assert done.exit_code == 0, done.output
    kinds = {path.name for path in (here / "scores").iterdir()}
    assert kinds == ({"surprise"} if dynamics == "rssm" else {"surprise", "posterior", "online"})
    judged = run(
        "boundaries", "eval", folder, "--event", "pad_enter", "--detector", "random",
        *[part for kind in kinds for part in ("--scores", f"{kind}=scores/{kind}")],
        "--permutations", 50, "--output", "b.json",
    )  # fmt: skip
    assert judged.exit_code == 0, judged.output
    names = {each["detector"] for each in json.loads((here / "b.json").read_text())["judgements"]}
    assert names == {*kinds, "random"}


def test_scores_are_what_the_model_says_frame_by_frame(here):
    done = run(
        "train", "wm_only=true", "--run-dir", "run", "dynamics_type=vta",
        "vta_boundary_force_scale=10", "vta_max_seg_len=3", "vta_max_seg_num=3", *TINY,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    folder = here / "episodes"
    collect(folder, "three", parse_mix("babble"), 2, length=50, size=16, seed=0)
    score_folder(here / "run", folder, here / "scores")
    model, config = restore_world(here / "run")
    assert config.vta_max_seg_len == 3
    one = read_episode(folder / "0001-51.npz")
    with np.load(here / "scores" / "posterior" / "0001-51.npz") as archive:
        score, forced = archive["score"], archive["forced"]
    frame = torch.from_numpy(one.image).flatten(1).float()[:, None] / 255
    assert isinstance(model.dynamics, Vta)
    logit = model.dynamics.detector(model.embed(frame))[:, 0]
    np.testing.assert_allclose(
        score[~forced], logit.sigmoid().detach().numpy()[~forced], rtol=1e-4, atol=1e-5
    )
    assert forced.any()
    assert np.isin(score[forced], [0, 1]).all()


def test_the_gate_asks_for_more_than_copying_the_last_frame(here):
    arguments = [a for a in TINY if not a.startswith("gates")]
    done = run("train", "wm_only=true", "--run-dir", "run", *arguments)
    assert done.exit_code == 3
    assert "predicts a frame no better" in done.output


def test_episodes_of_another_size_are_refused(here):
    done = run("train", "wm_only=true", "--run-dir", "run", *TINY)
    assert done.exit_code == 0, done.output
    write_new(here / "planted", planted_episodes(1, length=30))
    with pytest.raises(UserError, match=r"frames of \(1, 8, 3\)"):
        score_folder(here / "run", here / "planted", here / "scores")
    mixed = run("train", "wm_only=true", "--run-dir", "mixed", "data=planted", *TINY)
    assert mixed.exit_code == 2
    assert "held-out frames" in mixed.output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=pinpad_nine", "pinpad_nine"),
        ("dynamics_type=gru", "dynamics_type"),
        ("vta_boundary_rate=0", "vta_boundary_rate is 0"),
        ("vta_boundry_temp=2", "did you mean"),
        ("compile=true", "nothing is compiled"),
    ],
)
def test_wrong_settings_are_named(override, message, here):
    done = run("train", "wm_only=true", override)
    assert done.exit_code == 2, done.output
    assert message in done.output


def test_the_notes_conditions_are_valid_settings(here):
    for scale, temp, rate, pull, length in (
        (0.0, 1.0, 0.0, 0.0, 30),
        (10.0, 1.0, 0.0, 0.0, 30),
        (0.0, 2.0, 0.1, 0.5, 50),
    ):
        settings = WorldConfig(
            dynamics_type="vta",
            vta_boundary_force_scale=scale,
            vta_boundary_temp=temp,
            vta_boundary_rate=rate,
            vta_boundary_scale=pull,
            vta_max_seg_len=length,
        ).dynamics()
        assert isinstance(settings, VtaSettings)
        assert (settings.boundary_force_scale, settings.boundary_temp) == (scale, temp)
        assert (settings.boundary_rate, settings.boundary_scale) == (rate, pull)
        assert settings.max_seg_len == length
