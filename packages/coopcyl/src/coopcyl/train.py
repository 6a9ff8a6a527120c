"""Train the network: batches by step, losses, and an evaluation in metres beside the baselines."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from loom.loop import Every, FitResult, Losses, Prefetch, TrainState, fit
from loom.run import Run

from coopcyl.batches import SetBatch, SetLoader
from coopcyl.data.cache import StitchedCache
from coopcyl.data.sampler import SetSampler
from coopcyl.data.tree import Tree
from coopcyl.evaluate import Evaluation, EvaluationSet, evaluate, evaluation_sets
from coopcyl.matching_loss import matching_losses
from coopcyl.models.cylnet import CylNet
from coopcyl.train_config import TrainConfig

HEADLINE = "trans_err_m_median"


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


def new_model(config: TrainConfig, generator: torch.Generator) -> CylNet:
    """Return an untrained network for the panorama of the settings."""
    return CylNet(config.model, config.panorama.height, config.panorama.width, generator)


def new_optimizer(config: TrainConfig, model: CylNet) -> torch.optim.AdamW:
    """Return AdamW; the matching temperature has a group of its own and no decay."""
    rest = [p for name, p in model.named_parameters() if name != "temperature"]
    return torch.optim.AdamW(
        [
            {"name": "network", "params": rest},
            {"name": "temperature", "params": [model.temperature], "weight_decay": 0.0},
        ],
        betas=config.train_params.betas,
        weight_decay=config.train_params.weight_decay,
    )


def lr_lines(config: TrainConfig) -> list[str]:
    """Return what a training will do, before it does it: steps, samples, learning rates."""
    params, schedule, total = config.train_params, config.lr(), config.max_steps
    marks = dict.fromkeys((0, params.warmup_steps, total // 2, total - 1))
    rates = ", ".join(f"{schedule.at(step):.3g} at {step}" for step in marks)
    return [
        f"[steps] {params.epochs} epochs x {config.steps_per_epoch} steps = {total} steps of "
        f"{params.global_batch} sets: {total * params.global_batch} sets, on any number of "
        "processes",
        f"[lr] {rates}",
    ]


def train(
    config: TrainConfig, run: Run, data: TrainingData, device: str = "cpu"
) -> tuple[CylNet, FitResult]:
    """Train, writing records and checkpoints into the run's directory; return what is judged."""
    sampler = SetSampler(
        data.train.frames, config.seed, config.train_params.global_batch, config.dataset.views
    )
    loader = SetLoader(sampler, data.views.read, config.augmentation.build(), device)
    batches = Prefetch(loader.batch)
    model = new_model(config, run.generator("model")).to(device)
    state = TrainState(model, new_optimizer(config, model), ema_decay=config.train_params.ema_decay)
    for line in lr_lines(config):
        run.info(line)
    schedule, factor = config.lr(), config.train_params.temperature_lr_factor

    def rates(step: int) -> Mapping[str, float]:
        rate = schedule.at(step)
        return {"network": rate, "temperature": factor * rate}

    def loss(model: CylNet, batch: SetBatch, step: int) -> Losses:
        return matching_losses(model, batch, config.loss)

    sets = data.val_sets(config)
    try:
        result = fit(
            run,
            state,
            steps=config.max_steps,
            batch=batches,
            loss=loss,
            lr=rates,
            evaluate=Every(
                config.eval_interval,
                lambda model: recorded(
                    evaluate(model, sets, data.views.read, config.solver.build())
                ),
            ),
            gates=config.gates,
            clip_norm=config.train_params.clip_norm,
            log_interval=config.log_interval,
            checkpoint_interval=config.checkpoint_interval,
            metric_for_best=f"-metric/{HEADLINE}",
        )
    finally:
        batches.close()
    return state.ema_model, result


def recorded(found: Evaluation) -> dict[str, float | None]:
    """Return an evaluation as a record: metrics, baselines, and the share of identity's error."""
    metrics, baselines = found.metrics(), found.baselines()
    record: dict[str, float | None] = {f"metric/{name}": v for name, v in metrics.items()}
    record["metric/share_of_identity"] = metrics[HEADLINE] / baselines["identity"][HEADLINE]
    for name, row in baselines.items():
        record |= {f"baseline/{name.replace(' ', '_')}/{key}": v for key, v in row.items()}
    return record
