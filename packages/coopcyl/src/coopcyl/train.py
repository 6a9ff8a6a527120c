"""Train the network: batches by step, losses, and an evaluation in metres beside the baselines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from loom import distributed
from loom.loop import Every, FitResult, Losses, Prefetch, TrainState, fit
from loom.run import Run

from coopcyl.batches import SetBatch, SetLoader
from coopcyl.data.cache import StitchedCache
from coopcyl.data.sampler import SetSampler
from coopcyl.data.tree import Tree
from coopcyl.evaluate import Evaluation, EvaluationSet, evaluate, evaluation_sets
from coopcyl.loss_options import OverallLossOptions
from coopcyl.matching_loss import matching_losses
from coopcyl.models.cylnet import CylNet
from coopcyl.models.mapanything import MapAnythingAdapter, load_mapanything
from coopcyl.models.options import MapAnythingOptions
from coopcyl.models.predict import Network
from coopcyl.overall_loss import overall_loss
from coopcyl.train_config import TrainConfig

HEADLINE = "trans_err_m_median"
TEMPERATURE = "temperature"


@dataclass(frozen=True)
class TrainingData:
    """The splits of a run and the cache that both are read through."""

    train: Tree
    val: Tree
    views: StitchedCache

    def val_sets(self, config: TrainConfig) -> list[EvaluationSet]:
        """Return the sets that the run is judged on."""
        val = config.dataset.val
        return evaluation_sets(self.val.frames, val.views, val.max_sets_per_epoch)


def new_model(config: TrainConfig, generator: torch.Generator) -> Network:
    """Return the network of the settings: an untrained CylNet, or MapAnything's weights."""
    if isinstance(config.model, MapAnythingOptions):
        return load_mapanything(config.model)
    panorama = config.view_panorama
    return CylNet(config.model, panorama.height, panorama.width, generator)


def new_optimizer(config: TrainConfig, model: Network) -> torch.optim.AdamW:
    """Return AdamW; CylNet's matching temperature has a group of its own and no decay."""
    rest = [p for name, p in model.named_parameters() if name != TEMPERATURE]
    groups: list[dict[str, Any]] = [{"name": "network", "params": rest}]
    if isinstance(model, CylNet):
        groups.append({"name": TEMPERATURE, "params": [model.temperature], "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        betas=config.train_params.betas,
        weight_decay=config.train_params.weight_decay,
    )


def losses(config: TrainConfig, model: Network, batch: SetBatch) -> Losses:
    """Return the losses that belong to the network."""
    if isinstance(config.loss, OverallLossOptions):
        assert isinstance(model, MapAnythingAdapter)
        return overall_loss(model, batch, config.loss)
    assert isinstance(model, CylNet)
    return matching_losses(model, batch, config.loss)


def lr_lines(config: TrainConfig) -> list[str]:
    """Return what a training will do, before it does it: steps, samples, learning rates."""
    params, schedule, total = config.train_params, config.lr(), config.max_steps
    marks = dict.fromkeys((0, config.warmup_steps, total // 2, total - 1))
    rates = ", ".join(f"{schedule.at(step):.3g} at {step}" for step in marks)
    return [
        f"[steps] {params.epochs} epochs x {config.steps_per_epoch} steps = {total} steps of "
        f"{params.global_batch} sets: {total * params.global_batch} sets, on any number of "
        "processes",
        f"[lr] {rates}",
    ]


def train(
    config: TrainConfig,
    run: Run,
    data: TrainingData,
    on_judged: Callable[[Evaluation, int], None],
    device: str = "cpu",
) -> FitResult:
    """Train, writing records and checkpoints into the run's directory.

    Args:
        config: The settings.
        run: The open run.
        data: Both splits.
        on_judged: Told each evaluation of the averaged weights, and its step.
        device: Where the network is.
    """
    sampler = SetSampler(
        data.train.frames, config.seed, config.train_params.global_batch, config.dataset.views
    )
    loader = SetLoader(sampler, data.views.read, config.augmentation.build(), device)
    batches = Prefetch(loader.batch)
    model = new_model(config, run.generator("model")).to(device)
    state = TrainState(model, new_optimizer(config, model), ema_decay=config.train_params.ema_decay)
    for line in lr_lines(config):
        run.info(line)
    schedule = config.lr()
    factors = {"network": 1.0, TEMPERATURE: config.train_params.temperature_lr_factor}
    factors = {group["name"]: factors[group["name"]] for group in state.optimizer.param_groups}

    def rates(step: int) -> Mapping[str, float]:
        return {name: factor * schedule.at(step) for name, factor in factors.items()}

    sets = data.val_sets(config)

    def judge(model: Network) -> dict[str, float | None]:
        found = evaluate(model, sets, data.views.read, config.solver.build())
        on_judged(found, state.step)
        return recorded(found)

    try:
        return fit(
            run,
            state,
            steps=config.max_steps,
            batch=batches,
            loss=lambda model, batch, step: losses(config, model, batch),
            lr=rates,
            evaluate=Every(config.eval_interval, judge),
            gates=config.gates,
            accumulate=config.accumulate(distributed.shard().world),
            clip_norm=config.train_params.clip_norm,
            log_interval=config.log_interval,
            checkpoint_interval=config.checkpoint_interval,
            metric_for_best=f"-metric/{HEADLINE}",
        )
    finally:
        batches.close()


def recorded(found: Evaluation) -> dict[str, float | None]:
    """Return an evaluation as a record: metrics, baselines, and the share of identity's error."""
    metrics, baselines = found.metrics(), found.baselines()
    record: dict[str, float | None] = {f"metric/{name}": v for name, v in metrics.items()}
    record["metric/share_of_identity"] = metrics[HEADLINE] / baselines["identity"][HEADLINE]
    for name, row in baselines.items():
        record |= {f"baseline/{name.replace(' ', '_')}/{key}": v for key, v in row.items()}
    return record
