"""The commands of pinpad, with episodes of 200 steps and models of 16 units."""

from pathlib import Path

from printed.runner import Chain, step

_SMALL = (
    "dyn_deter=16 dyn_hidden=16 dyn_stoch=4 dyn_discrete=4 vta_abs_belief=16 vta_obs_belief=16 "
    "batch_size=8 batch_length=10 prefill=400 time_limit=100 log_every=1 eval_every=2 updates=2 "
    "heldout_episodes=2 gates=[]"
)
_WORLD = f"{_SMALL} vta_abs_stoch=4 vta_obs_stoch=4"  # which the conditions of a sweep set
_AGENT = (
    "units=16 imag_starts=8 imag_horizon=3 envs=8 train_ratio=4 pretrain=2 least_reward_ap=0 "
    "eval_episodes=4 eval_steps=60"
)
_SWEEP = f"--episodes 2 --permutations 19 --jobs 2 {_SMALL}"
PINPAD_QUICK = Chain(
    "pinpad, recorded episodes",
    (
        step("pinpad config show"),
        step("pinpad schedule"),
        step(
            "pinpad planted FOLDER", "pinpad planted", plus="--episodes 2", run="pinpad planted P"
        ),
        step(
            "pinpad collect FOLDER --task pinpad_three "
            "--players uniform=1,sticky=1,babble=1,oracle:0.1=1",
            plus="--episodes 4 --length 200 --size 16",
        ),
        step(run="pinpad boundaries eval FOLDER --permutations 99"),
    ),
    quick=True,
)


def one_condition(folder: Path) -> None:
    """A file of conditions for a sweep."""
    (folder / "FILE").write_text("one: {dynamics_type: rssm}\n")


PINPAD = Chain(
    "pinpad",
    (
        step("pinpad collect FOLDER", plus="--episodes 4 --length 200 --size 16"),
        step(run="pinpad collect EPISODES --episodes 2 --length 200 --size 16"),
        step("pinpad doctor"),
        step("pinpad demo"),
        step("pinpad train", plus=f"{_WORLD} {_AGENT} --run-dir AGENT"),
        step("pinpad eval RUN", run="pinpad eval AGENT --episodes 2 --steps 50"),
        step(
            "pinpad train --task pinpad_three --dynamics-type rssm",
            plus=f"{_WORLD} {_AGENT} name=three",
        ),
        step("pinpad train wm_only=true", plus=f"{_WORLD} name=first"),
        step(
            "pinpad train wm_only=true --data FOLDER",
            plus=f"{_WORLD} dynamics_type=vta --run-dir RUN",
        ),
        step(
            "torchrun --standalone --nproc-per-node=2 -m pinpad train wm_only=true "
            "--run-dir runs/world-model",
            plus=_WORLD,
        ),
        step("pinpad boundaries score RUN EPISODES OUT"),
        step(
            "pinpad boundaries eval EPISODES --scores NAME=FOLDER",
            "pinpad boundaries eval [FOLDER] --scores NAME=FOLDER",
            run="pinpad boundaries eval EPISODES --scores vta=OUT/posterior",
            plus="--permutations 99",
        ),
        step("pinpad boundaries eval RUN", plus="--on EPISODES --permutations 99"),
        step("pinpad boundaries draw RUN"),
        step("pinpad sweep", plus=f"{_SWEEP} wm_only=true --logroot LOGROOT"),
        step(
            "pinpad boundaries eval LOGROOT/heldout --event background --permutations 999 "
            "--scores detect=LOGROOT/pinpad_vta_detect_seed0/evaluation/scores/posterior",
            run="pinpad boundaries eval LOGROOT/heldout --event background --permutations 99 "
            "--scores force=LOGROOT/pinpad_vta_force0_t1_seed0/evaluation/scores/posterior",
        ),
        step("pinpad monitor [LOGROOT]", "pinpad monitor", run="pinpad monitor LOGROOT"),
        step("pinpad stop", run="pinpad stop LOGROOT", code=2),  # it has ended
        step("pinpad report LOGROOT"),
        step("pinpad report RUN", "pinpad report RUN|LOGROOT"),
        step(
            "pinpad sweep --task pinpad_eight --seeds 0,1,2 wm_only=true updates=5000",
            plus=f"--seeds 0 --skip-rssm {_SWEEP}",
        ),
        step(
            "pinpad sweep --task pinpad_three --seeds 0,1,2 --jobs 1 wm_only=true updates=150 "
            "eval_every=150 prefill=40000 players=uniform=1,sticky=1,babble=1,oracle:0.1=1 "
            "time_limit=1000 log_every=50 gates=[]",
            plus=f"--seeds 0 --skip-rssm {_SWEEP}",
        ),
        step(
            "pinpad sweep --conditions FILE --task pinpad_three --seeds 0,1,2 --jobs 1 "
            "wm_only=true updates=1000 eval_every=500 batch_size=12 batch_length=40 prefill=40000 "
            "players=uniform=1,sticky=1,babble=1,oracle:0.1=1 time_limit=1000 gates=[]",
            plus=f"--seeds 0 {_SWEEP}",
        ),
        step(
            "pinpad sweep --conditions FILE",
            run=f"pinpad sweep --conditions FILE wm_only=true {_SWEEP}",
        ),
    ),
    begin=one_condition,
    small=lambda: {"pinpad.demo:SETTINGS": ("wm_only=true", *_WORLD.split())},
)
