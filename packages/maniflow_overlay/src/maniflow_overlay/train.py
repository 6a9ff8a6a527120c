"""Train a policy on a frame store: data, network, objective, validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from loom import distributed
from loom.device import choose_device
from loom.errors import UserError
from loom.files import sha256_file
from loom.loop import Every, FitResult, Prefetch, TrainState, fit
from loom.run import Run
from loom.sampling import draw_rng
from loom.update import Precision

from maniflow_overlay.config import TrainConfig
from maniflow_overlay.data.frame_store import MANIFEST, FrameStore
from maniflow_overlay.data.path_layers import FOLDER, STATUS, PathLayers
from maniflow_overlay.data.windows import Batches, Windows, WindowShape, validation_episodes
from maniflow_overlay.open_loop import SCORES, OpenLoop, write_scores
from maniflow_overlay.policy.model import OverlayPolicy, parameter_count
from maniflow_overlay.policy.normaliser import idle_warnings
from maniflow_overlay.policy.objective import FlowObjective
from maniflow_overlay.policy.presets import PolicyShape
from maniflow_overlay.policy.pretrained import load_r3m
from maniflow_overlay.policy.resnet import ResNet18
from maniflow_overlay.policy.runtime import Policy, PolicyRecord
from maniflow_overlay.policy.sharding import shard_policies
from maniflow_overlay.policy.text_encoder import TextEncoder
from maniflow_overlay.policy.text_tokens import Instructions
from maniflow_overlay.stored_instructions import read_instructions
from maniflow_overlay.training_batches import TrainingBatches
from maniflow_overlay.watchdog import Watchdog


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a run learns from and is validated on.

    Attributes:
        store: The frames.
        training: Windows of the training episodes; frame and path apart where pictures vary.
        validation: Windows of the episodes kept back, or of all where none are.
        rows: (n,) rows of the training episodes.
        instructions: Their tokens, for a policy that takes them.
    """

    store: FrameStore
    training: Batches
    validation: Batches
    rows: np.ndarray
    instructions: Instructions | None = None


def policy_shape(config: TrainConfig, data: TrainingData) -> PolicyShape:
    """Return the shape of the policy that a configuration asks for on its data."""
    store = data.store
    encoder = None if data.instructions is None else data.instructions.encoder
    return PolicyShape(
        config.preset,
        config.arm,
        store.shape.height,
        store.shape.width,
        store.shape.vector,
        store.shape.vector,
        tuple(store.tasks) if config.language == "task" else (),
        config.steps_ahead,
        config.n_obs_steps,
        config.action_steps,
        config.encoder_weights is not None,
        encoder.width if encoder else 0,
        encoder.digest if encoder else "",
    )


def read_data(config: TrainConfig, run: Run[TrainConfig]) -> TrainingData:
    """Open the store and its paths, and divide its episodes."""
    if config.store is None:
        raise ValueError("the command line fills in a store")
    store = FrameStore(config.store)
    run.use("store", sha256_file(config.store / MANIFEST))
    layers = None
    if config.mode != "none":
        layers = PathLayers(store)
        run.use("paths", sha256_file(config.store / FOLDER / STATUS))
    horizon, observed = config.steps_ahead, config.n_obs_steps
    shape = WindowShape(horizon, observed, observed - 1, horizon - 1)
    kept_back = validation_episodes(len(store.episodes), config.val_ratio, config.seed)
    looked_at = kept_back if kept_back.any() else ~kept_back
    rows = np.flatnonzero(~kept_back[store.episode_of(np.arange(len(store)))])
    training = Batches(
        store,
        layers,
        Windows(store.begins[~kept_back], store.ends[~kept_back], shape),
        show=config.mode,
        fuse="concat6" if config.augment.active else config.fuse,
        batch=config.batch_size,
        seed=config.seed,
    )
    validation = Batches(
        store,
        layers,
        Windows(store.begins[looked_at], store.ends[looked_at], shape),
        show=config.mode,
        fuse=config.fuse,
    )
    run.info(
        f"[data] {len(store)} frames of {len(store.episodes)} episodes in {config.store}: "
        f"{len(training)} windows to train on, {len(validation)} of {int(kept_back.sum())} "
        "episodes kept back"
        + ("" if kept_back.any() else " (none: validation repeats the training episodes)")
    )
    instructions = None
    if config.text_encoder is not None:
        instructions = read_instructions(store, TextEncoder(config.text_encoder))
        run.use("text_encoder", instructions.encoder.digest)
        run.info(f"[text] {len(instructions)} instructions, encoded by {config.text_encoder}")
    return TrainingData(store, training, validation, rows, instructions)


def new_policy(config: TrainConfig, data: TrainingData, run: Run[TrainConfig]) -> OverlayPolicy:
    """Make the network, its encoder's weights and its normalisers."""
    model = OverlayPolicy(policy_shape(config, data), run.generator("policy"))
    if config.encoder_weights is not None:
        for trunk in model.encoder.trunks:
            if isinstance(trunk, ResNet18):
                load_r3m(trunk, config.encoder_weights)
        run.use("encoder_weights", config.encoder_weights)
        run.info(f"[encoder] weights: {config.encoder_weights}")
    elif config.preset != "tiny":
        run.warn("[encoder] weights: random; encoder_weights=r3m_18/model.pt takes R3M's")
    state, action = data.store.state[data.rows], data.store.action[data.rows]
    model.normalise_action.fit(action, config.range_eps)
    warnings = idle_warnings(action, "action", config.range_eps)
    if config.size.normalise_state:
        model.normalise_state.fit(state, config.range_eps)
        warnings += idle_warnings(state, "state", config.range_eps)
    for warning in warnings:
        run.warn(f"[normaliser] {warning}")
    return model


def train(config: TrainConfig, run: Run[TrainConfig]) -> tuple[Policy, FitResult]:
    """Train and validate; the run's directory holds records and checkpoints."""
    with (
        distributed.group(),
        Watchdog(run.dir, run.info, run.warn, limit_s=config.watchdog_s) as watchdog,
    ):
        device = choose_device(config.device)
        precision = _precision(config, device)
        data = read_data(config, run)
        state = new_state(config, new_policy(config, data, run).to(device))
        if state.sharded:
            run.info(f"[shard] weights are spread over {distributed.shard().world} processes")
        total = config.total_steps(len(data.training))
        run.info(
            f"[policy] {config.preset}, {config.mode}, {config.fuse}: "
            f"{parameter_count(state.model):,} parameters on {device} in {precision}; {total} "
            f"steps of {config.batch_size}, "
            f"{total * config.batch_size / len(data.training):.1f} epochs"
        )
        open_loop = OpenLoop(data.validation, data.store.action[data.rows].mean(axis=0))
        batches = Prefetch(
            TrainingBatches(data.training, config, state.model.shape, device, data.instructions)
        )

        def validate(averaged: OverlayPolicy) -> dict[str, float]:
            policy = policy_of(averaged, config, data.instructions)
            return open_loop.evaluate(policy, config.val_windows)

        try:
            result = fit(
                run,
                state,
                steps=total,
                batch=batches,
                loss=FlowObjective(state.ema_model, config.target_t),
                lr=config.learning_rate(total).at,
                evaluate=Every(config.val_every, validate),
                gates=config.gates,
                before_step=lambda step: _seed_dropout(config.seed, step),
                after_step=lambda step: watchdog.step_ended(step + 1),
                accumulate=config.gradient_accumulate_every,
                clip_norm=config.clip_norm,
                precision=precision,
                log_interval=config.log_every,
                checkpoint_interval=config.checkpoint_every,
                metric_for_best="-metric/action_mse",
            )
        finally:
            batches.close()
        policy = policy_of(state.ema_model, config, data.instructions)
        if run.is_main or state.sharded:  # where weights are spread, no process can ask alone
            scores = open_loop.evaluate(policy)
        if run.is_main:
            write_scores(run.path(SCORES), scores, len(data.validation), result.step)
    return policy, result


def new_state(config: TrainConfig, model: OverlayPolicy) -> TrainState[OverlayPolicy]:
    """Put a network together with its optimiser and its averaged copy, the teacher."""
    if config.shard == "none":  # fully_shard takes contiguous weights only
        model.to(memory_format=torch.channels_last)
    record = PolicyRecord(model.shape)
    state = TrainState(
        model, _optimizer(config, model), ema_decay=config.ema_decay, extras={"policy": record}
    )
    if config.shard == "fsdp2":
        shard_policies(model, state.ema_model, device=state.device)
        state.optimizer = _optimizer(config, model)
    return state


def _optimizer(config: TrainConfig, model: OverlayPolicy) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": list(model.parameters()), "name": "policy"}],
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _seed_dropout(seed: int, step: int) -> None:
    """Make dropout, which draws from torch's global generator, a function of the step, too."""
    rng = draw_rng(seed, step, f"dropout {distributed.shard().rank}")
    torch.manual_seed(int(rng.integers(2**62)))


def policy_of(
    model: OverlayPolicy, config: TrainConfig, instructions: Instructions | None = None
) -> Policy:
    """Return a network as it is asked in this run."""
    return Policy(
        model,
        inference_steps=config.num_inference_steps,
        kind=config.target_t,
        instructions=instructions,
    )


def _precision(config: TrainConfig, device: torch.device) -> Precision:
    if config.precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return "bf16" if bf16 else "fp32"
    if config.precision == "bf16" and device.type == "cpu" and config.size.trunk == "resnet18":
        raise UserError(
            f"precision bf16 with the ResNet of preset {config.preset} on a CPU: torch's bfloat16 "
            "gradient of one of its convolutions is at times not finite there",
            hint="precision=fp32, or auto, which takes bf16 on a GPU only",
        )
    return config.precision
