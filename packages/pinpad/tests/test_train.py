import json
import shutil
import subprocess
import sys

import pytest
import torch
from loom.checkpoint import Checkpoints
from loom.config import differences, plain, resolve
from loom.errors import UserError
from loom.record import read_records
from pinpad.cli import app
from pinpad.data.collect import collect
from pinpad.data.players import parse_mix
from pinpad.restore import read_config, restore_agent, restore_world
from pinpad.returns import Judging, read_returns, scripted_returns
from pinpad.train import new_agent
from pinpad.train_config import PRESETS, TrainConfig, preset_names
from pinpad.training_run import resolve_training
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [
    "dyn_deter=16", "dyn_hidden=16", "dyn_stoch=4", "dyn_discrete=4", "vta_abs_belief=16",
    "vta_abs_stoch=4", "vta_obs_belief=16", "vta_obs_stoch=4", "units=16", "imag_starts=8",
    "imag_horizon=3", "batch_size=8", "batch_length=8", "prefill=400", "envs=8", "time_limit=40",
    "train_ratio=4", "pretrain=2", "updates=7", "eval_every=5", "log_every=1", "gates=[]",
    "least_reward_ap=0", "heldout_episodes=3", "eval_episodes=4", "eval_steps=60",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def measured(folder):
    keep = ("metric/", "loss/", "baseline/", "train/", "grad/")
    rows = read_records(folder)
    return [{k: v for k, v in row.items() if k == "step" or k.startswith(keep)} for row in rows]


def differing(one, two, place=""):
    """Places at which two nested states are not the same to the bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, two) else [place]
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        return [d for key in one for d in differing(one[key], two[key], f"{place}.{key}")]
    if isinstance(one, list | tuple):
        return [d for i, (a, b) in enumerate(zip(one, two, strict=True))
                for d in differing(a, b, f"{place}[{i}]")]  # fmt: skip
    return [] if one == two else [place]


def test_the_run_of_another_thread_is_named_as_such(here):
    (here / "other").mkdir()
    (here / "other" / "run.json").write_text('{"thread": "coopcyl"}')
    (here / "other" / "config.yaml").write_text("panorama: {width: 1008}\n")
    said = run("train", "--run-dir", "other", "--resume")
    assert said.exit_code == 2
    assert "other is a run of coopcyl, not of pinpad" in said.stderr
    with pytest.raises(UserError, match="is a run of coopcyl, not of pinpad"):
        read_config(here / "other")


@pytest.mark.parametrize("dynamics", ["rssm", "vta"])
def test_an_agent_trains_and_resumes_to_the_bit_with_its_rooms_and_its_memory(dynamics, here):
    common = ["--task", "three", "--dynamics-type", dynamics, *TINY, "expl_behavior=plan2explore",
              "expl_until=420"]  # fmt: skip
    whole = run("train", "--run-dir", "whole", *common)
    assert whole.exit_code == 0, whole.output
    assert "oracle" in whole.output
    begun = run("train", "--run-dir", "parts", *common)
    assert begun.exit_code == 0, begun.output
    shutil.rmtree(here / "parts" / "checkpoints" / "step_000007")  # as if it had ended at 5
    resumed = run("train", "--run-dir", "parts", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads((here / "parts" / "run.json").read_text())["resumes"][0]["step"] == 5
    one, two = measured(here / "whole"), measured(here / "parts")
    assert one == two
    final = [Checkpoints(here / name / "checkpoints").load(7).state for name in ("whole", "parts")]
    for section in ("model", "optimizer", "extras", "random"):
        assert differing(*(state[section] for state in final)) == []
    # 8 rooms, 64 frames learnt from at a ratio of 4: two steps of each room before an update.
    assert [row["train/env_steps"] for row in one] == [400, 400, 400, 416, 432, 448, 464]
    assert one[-1]["metric/return"] == read_returns(here / "whole" / "evaluation")[0].mean
    assert "Returns" in (here / "whole" / "report.html").read_text()

    agent, config = restore_agent(here / "whole")
    assert config.dynamics_type == dynamics
    world, _ = restore_world(here / "whole")
    assert {*world.state_dict()} == {*agent.world.state_dict()}
    bounds = run("boundaries", "eval", "whole", "--event", "pad_enter", "--permutations", 50,
                 "--detector", "random")  # fmt: skip
    assert bounds.exit_code == 0, bounds.output
    found = json.loads((here / "whole" / "evaluation" / "boundary_eval.json").read_text())
    names = {"surprise"}
    if dynamics == "vta":
        names |= {"posterior", "posterior:topk", "online", "online:topk"}
    assert {each["detector"] for each in found["judgements"]} == {*names, "random"}
    assert found["episodes"] == 3
    judged = run("eval", "whole", "--episodes", 3, "--steps", 50)
    assert judged.exit_code == 0, judged.output
    assert [line.split()[0] for line in judged.output.splitlines()[-3:]] == [
        "agent", "random", "oracle",
    ]  # fmt: skip


def test_without_acting_a_world_model_learns_from_recorded_episodes(here):
    collect(here / "recorded", "three", parse_mix("babble"), 4, length=60, size=16, seed=0)
    done = run("train", "--run-dir", "run", "--data", "recorded", "wm_only=true", *TINY)
    assert done.exit_code == 0, done.output
    assert "[data] 4 episodes" in done.output
    assert restore_world(here / "run")[1].data is not None
    with pytest.raises(UserError, match="nobody who acts"):
        restore_agent(here / "run")
    facts = json.loads((here / "run" / "run.json").read_text())
    (here / "run" / "run.json").write_text(json.dumps(facts | {"thread": "coopcyl"}))
    with pytest.raises(UserError, match="is a run of coopcyl, not of pinpad"):
        restore_world(here / "run")


def test_a_world_model_makes_the_updates_of_an_agent_where_none_are_named(here):
    arguments = [each for each in TINY if not each.startswith("updates")]
    done = run("train", "--run-dir", "run", "wm_only=true", *arguments, "steps=432")
    assert done.exit_code == 0, done.output
    # pretrain 2, and 32 steps more than the scripted 400, learnt from 4 times by 8 x 8 frames
    assert read_records(here / "run")[-1]["step"] == 2 + 32 * 4 // 64


def test_held_out_episodes_that_a_model_cannot_be_judged_on_are_named(here):
    collect(here / "large", "three", parse_mix("babble"), 1, length=60, size=64, seed=0)
    done = run("train", "--run-dir", "one", "heldout=large", *TINY)
    assert done.exit_code == 2, done.output
    assert "held-out frames are (64, 64, 3), those learnt from (16, 16, 3)" in done.output
    short = [each for each in TINY if not each.startswith("time_limit")]
    done = run("train", "--run-dir", "two", *short, "time_limit=20")
    assert done.exit_code == 2, done.output
    assert "have 21 frames at most" in done.output
    assert "time_limit=24" in done.output


def test_an_agent_that_could_not_be_judged_at_the_end_is_not_begun(here):
    short = [each for each in TINY if not each.startswith("eval_steps")]
    done = run("train", "--run-dir", "run", "--task", "eight", *short, "eval_steps=20")
    assert done.exit_code == 2, done.output
    assert "the oracle earns 0 in 20 steps, uniform play 0" in done.output
    assert "[prefill]" not in done.output


def test_a_model_that_cannot_predict_rewards_from_actions_misses_its_gate(here):
    arguments = [each for each in TINY if not each.startswith(("least", "time_limit"))]
    done = run("train", "--run-dir", "run", *arguments, "least_reward_ap=1.0", "time_limit=150")
    assert done.exit_code == 3
    assert "from actions alone" in done.output
    assert read_returns(here / "run" / "evaluation")  # what it earned is known all the same


def test_updates_follow_from_steps_and_the_other_way_round():
    config = TrainConfig(
        steps=90_000, prefill=50_000, pretrain=100, batch_size=32, batch_length=16, train_ratio=8.0
    )
    assert config.all_updates() == 100 + 40_000 // 64
    assert [config.acted(step) for step in (0, 100, 101, 110, 725)] == [0, 0, 1, 10, 625]
    assert 50_000 + 64 * config.acted(config.all_updates()) == 90_000
    many = config.model_copy(update={"envs": 256})
    assert [many.acted(step) for step in (103, 104, 108)] == [0, 1, 2]


def test_novelty_counts_until_its_last_step_or_for_ever_and_never_for_the_greedy():
    curious = TrainConfig(expl_behavior="plan2explore", dataset_size=200_000)
    assert curious.explores(10_000_000)
    until = curious.model_copy(update={"expl_until": 300_000})
    assert [until.explores(steps) for steps in (299_999, 300_000)] == [True, False]
    assert not TrainConfig(expl_until=300_000).explores(0)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_chosen(name):
    chosen = resolve_training(None, ["seed=3"], name).config
    assert chosen.seed == 3
    default = TrainConfig()
    changed = differences(plain(default), plain(chosen.model_copy(update={"seed": 0})))
    assert bool(changed) is (name != "cpu_tiny"), changed
    pixels = chosen.size**2 * 3
    agent = new_agent(chosen, pixels, torch.Generator().manual_seed(0))
    state, nothing = agent.world.dynamics.zeros(1, agent.world.pixel_mean), torch.zeros(1, 5)
    first = torch.ones(1, dtype=torch.bool)
    _, action = agent.act(state, torch.rand(1, pixels), nothing, first, None)
    assert action.sum() == 1


def test_a_detector_s_settings_have_a_name_wherever_settings_are_given():
    chosen = resolve_training(None, ["vta=detect", "vta_discrete=4"]).config
    assert (chosen.dynamics_type, chosen.vta_abs_scale, chosen.vta_discrete) == ("vta", 0.1, 4)
    assert TrainConfig().vta_abs_scale == 1
    shown = run("config", "show", "vta=detect", "preset=cpu_small").output
    assert "vta_abs_scale=0.1" in shown
    assert "dyn_deter=256" in shown


def test_a_file_lies_below_a_preset_and_a_preset_below_the_rest(here):
    (here / "mine.yaml").write_text("units: 7\nbatch_size: 9\n")
    config = resolve_training(here / "mine.yaml", ["batch_length=5"], "cpu_tiny").config
    assert (config.units, config.batch_size, config.batch_length) == (128, 32, 5)
    assert resolve(TrainConfig, here / "mine.yaml", groups=PRESETS).config.units == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "nine"], "nine"),
        (["--dynamics-type", "gru"], "dynamics_type"),
        (["--preset", "cpu_huge"], "there are cpu_small, cpu_tiny"),
        (["steps=10"], "prefill is 100000"),
        (["action_repeat=2"], "are not repeated"),
        (["--data", "recorded"], "an agent makes its own episodes"),
        (["players=nobody"], "'nobody' is no player"),
    ],
)
def test_wrong_settings_are_named(arguments, message, here):
    done = run("train", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output


def test_a_wrong_setting_is_named_without_loading_torch():
    code = (
        "import sys\nfrom pinpad.cli import app\nfrom typer.testing import CliRunner\n"
        "done = CliRunner().invoke(app, ['train', 'updates=-3'])\n"
        "print(done.exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


def test_the_oracle_earns_much_and_uniform_play_little():
    judging = Judging("three", rooms=64, steps=1_000, size=16, seed=0)
    oracle, random = (scripted_returns(player, judging) for player in ("oracle", "uniform"))
    assert oracle.shape == (64,)
    assert 500 < oracle.mean() < 620
    assert 2 < random.mean() < 25
