"""What can be asked of a trained network: how good, where the error comes from, what it sees."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import typer
from loom.config import resolve
from loom.drawing import print_json, print_table
from loom.errors import UserError
from loom.files import write_atomic, write_json

from coopcyl.batches import SetBatch, collate
from coopcyl.data.cache import StitchedCache
from coopcyl.data.samples import sample_of
from coopcyl.data.tree import Tree
from coopcyl.embedded import open_town
from coopcyl.evaluate import (
    Evaluation,
    EvaluationSet,
    confidence_curve,
    evaluate,
    evaluation_sets,
    predict_sample,
)
from coopcyl.looking import choose_frame, make_folder, see
from coopcyl.models.cylnet import CylNet
from coopcyl.models.predict import OracleKind, SetPrediction
from coopcyl.pages import SHOWN
from coopcyl.render import write_scene
from coopcyl.restore import Restored, restore_model
from coopcyl.train_config import TrainConfig

SHARES = (0.25, 0.5, 0.75, 1.0)
PARITY_LIMIT = 1e-5
_LADDER: dict[str, frozenset[OracleKind]] = {
    "network": frozenset(),
    "true ranges": frozenset({"depth"}),
    "true matches": frozenset({"match"}),
    "true ranges and matches": frozenset({"depth", "match"}),
}
_EVERYTHING = ("dataset.val.max_sets_per_epoch=null", "dataset.val.views=[2,100]")


@dataclass(frozen=True)
class Question:
    """A trained network and the sets that it is asked about.

    Attributes:
        run: A run directory or one checkpoint.
        overrides: `KEY=VALUE` on top of the run's settings.
        root: Of the data set; None takes that of the run.
        split: Folder below the root; None takes the validation split of the run.
    """

    run: Path
    overrides: Sequence[str] | None = None
    root: Path | None = None
    split: str | None = None

    def open(self, defaults: Sequence[str] = ()) -> "Asked":
        """Read the network and list the sets.

        Args:
            defaults: `KEY=VALUE` over the run's settings and under the overrides.
        """
        restored = restore_model(self.run)
        flags = {"dataset.root": self.root, "dataset.val.split": self.split}
        source = restored.run / "config.yaml"
        overrides = (*defaults, *(self.overrides or ()))
        config = resolve(TrainConfig, source, overrides, flags=flags).config
        _require_same_network(restored.config, config)
        tree = open_town(config.dataset, config.dataset.val.split, _say)
        return Asked(restored, config, tree, StitchedCache(config.dataset.cache, config.reader()))


@dataclass(frozen=True)
class Asked:
    """An opened question."""

    restored: Restored
    config: TrainConfig
    tree: Tree
    views: StitchedCache

    def sets(self) -> list[EvaluationSet]:
        """Return the sets to judge on."""
        val = self.config.dataset.val
        return evaluation_sets(self.tree.frames, val.views, val.max_sets_per_epoch)

    def evaluate(self, oracle: frozenset[OracleKind] = frozenset()) -> Evaluation:
        """Judge the network."""
        return evaluate(
            self.restored.model, self.sets(), self.views.read, self.config.solver.build(), oracle
        )


def run_evaluation(
    question: Question,
    *,
    oracle: Collection[str],
    ladder: bool,
    shuffle: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Judge a network, print and write the result."""
    if ladder and oracle:
        raise UserError("--ladder and --oracle", hint="the ladder has its own oracles: give one")
    stages = _LADDER if ladder else {_name(oracle): _oracle(oracle)}
    asked = question.open()
    found = {name: asked.evaluate(kinds) for name, kinds in stages.items()}
    first = next(iter(found.values()))
    if shuffle:
        found["poses of other sets"] = shuffled(first)
    content = {
        "split": asked.tree.split,
        "sets": len(asked.sets()),
        "step": asked.restored.step,
        **asked.restored.sources(),
        "results": {name: results(each) for name, each in found.items()},
    }
    if output is not None:
        make_folder(output.parent)
        write_json(output, content)
    if as_json:
        print_json(content)
        return
    typer.echo(f"{content['sets']} sets of {asked.tree.split}, network of step {content['step']}")
    print_results(found)
    curve = ", ".join(f"{share:.0%}: {m:.2f} m" for share, m in confidence_curve(first, SHARES))
    typer.echo(f"median error of the most confident: {curve}")


def results(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain values: metrics, baselines, confidence curve, rows."""
    return {
        "sets": len(set(found.sets.tolist())),
        "metrics": found.metrics(),
        "baselines": found.baselines(),
        "confidence_curve": confidence_curve(found, SHARES),
        "trans_err_m": found.trans_err_m().tolist(),
        "confidence": found.confidence.tolist(),
    }


def print_results(found: dict[str, Evaluation]) -> None:
    """Print results with the trivial answers below them."""
    first = next(iter(found.values()))
    rows = {name: each.metrics() for name, each in found.items()} | first.baselines()
    table = [
        [name, *(None if key not in row else round(row[key], 3) for key in SHOWN)]
        for name, row in rows.items()
    ]
    print_table(["", *SHOWN.values()], table)


def shuffled(found: Evaluation) -> Evaluation:
    """Return the predictions beside the true poses of other sets: what is left must be chance.

    Raises:
        UserError: One set has half of the rows or more, so that some would meet their own.
    """
    rows = np.bincount(found.sets)
    if 2 * rows.max() > rows.sum():
        raise UserError(
            f"{np.count_nonzero(rows)} sets are too few to exchange their poses",
            hint="take a split with more times, or leave out --shuffle",
        )
    return replace(found, truths=np.roll(found.truths, rows.max(), axis=0))


def run_parity(question: Question, *, as_json: bool) -> bool:
    """Compare what training computes with what prediction computes; return whether it is equal."""
    asked = question.open()
    sets = asked.sets()[:4]
    per_set = min(len(each.agents) for each in sets)
    samples = [
        sample_of([asked.views.read(a) for a in each.agents[:per_set]], np.random.default_rng(0))
        for each in sets
    ]
    solver = asked.config.solver.build()
    found = [predict_sample(asked.restored.model, sample, solver) for sample in samples]
    apart = parity(asked.restored, collate(samples), found)
    equal = max(apart.values()) <= PARITY_LIMIT
    if as_json:
        typer.echo(json.dumps({"equal": equal, "limit": PARITY_LIMIT, "largest": apart}))
    else:
        print_table(["", "largest difference"], list(apart.items()))
        typer.echo("equal" if equal else f"not equal within {PARITY_LIMIT:g}")
    return equal


def parity(restored: Restored, batch: SetBatch, found: Iterable[SetPrediction]) -> dict[str, float]:
    """Return the largest differences between a training batch's outputs and predictions."""
    if not isinstance(restored.model, CylNet):
        raise UserError("MapAnything takes one path only", hint="parity is about model=cylnet")
    device = next(restored.model.parameters()).device
    with torch.no_grad():
        maps = restored.model(batch.views.to(device), batch.per_set)
    views = [view for each in found for view in each.views]
    ours = {
        "log depth_along_ray": maps.pixel_log_range,
        "non_ambiguous_mask_logits": maps.pixel_surface_logits,
        "log metric_scaling_factor": maps.log_scale[:, None],
    }
    theirs = {
        "log depth_along_ray": [view["depth_along_ray"][..., 0].log() for view in views],
        "non_ambiguous_mask_logits": [view["non_ambiguous_mask_logits"] for view in views],
        "log metric_scaling_factor": [view["metric_scaling_factor"].log() for view in views],
    }
    return {
        name: max(
            float((one - other[0]).abs().max())
            for one, other in zip(tensor, theirs[name], strict=True)
        )
        for name, tensor in ours.items()
    }


def run_rendering(question: Question, *, frame: str, output: Path, rerun: bool = False) -> str:
    """Draw one time as the network sees it; return what was written."""
    asked = question.open()
    chosen = choose_frame(asked.tree, frame)
    agents = [agent for agent in chosen.agents if agent.agent >= 0] or list(chosen.agents)
    seen = [see(agent, asked.views.reader) for agent in agents]
    sample = sample_of([each.view for each in seen], np.random.default_rng(0))
    found = predict_sample(asked.restored.model, sample, asked.config.solver.build())
    page = write_scene(chosen, seen, output, found, rerun=rerun)
    write_json(page.with_name(f"{page.stem}_sources.json"), asked.restored.sources())
    return f"{len(seen)} vehicles of {chosen.scenario}/{chosen.time}: {page}"


def run_predictions(question: Question, output: Path) -> str:
    """Predict all vehicles at every time of a split, one JSON line each; return what was done."""
    asked = question.open(_EVERYTHING)
    solver = asked.config.solver.build()
    lines = []
    for chosen in asked.sets():
        sample = sample_of([asked.views.read(a) for a in chosen.agents], np.random.default_rng(0))
        found = predict_sample(asked.restored.model, sample, solver)
        lines.append(json.dumps(_row(chosen, found)))
    header = json.dumps({"split": asked.tree.split, **asked.restored.sources()})
    make_folder(output.parent)
    write_atomic(output, "\n".join([header, *lines]) + "\n")
    return f"{len(lines)} times of {asked.tree.split}: {output}"


def _row(chosen: EvaluationSet, found: SetPrediction) -> dict[str, Any]:
    """Return the predicted poses of a set as plain values."""
    first = chosen.agents[0]
    return {
        "scenario": first.scenario,
        "time": first.time,
        "reference": first.agent,
        "vehicles": {
            str(agent.agent): {
                "cam_trans": view["cam_trans"][0].tolist(),
                "cam_quats_xyzw": view["cam_quats"][0].tolist(),
                "confidence": float(sure),
            }
            for agent, view, sure in zip(chosen.agents, found.views, found.confidence, strict=True)
        },
    }


def _oracle(names: Iterable[str]) -> frozenset[OracleKind]:
    known: tuple[OracleKind, ...] = get_args(OracleKind)
    chosen = frozenset(kind for kind in known if kind in names)
    if unknown := sorted(set(names) - set(known)):
        raise UserError(
            f"there is no oracle {', '.join(unknown)}", hint=f"any of {', '.join(known)}"
        )
    return chosen


def _name(oracle: Collection[str]) -> str:
    return "network" if not oracle else f"network, true {' and '.join(sorted(oracle))}"


def _require_same_network(own: TrainConfig, given: TrainConfig) -> None:
    for section in ("model", "view_panorama"):
        was, now = getattr(own, section), getattr(given, section)
        if was != now:
            name = section.removeprefix("view_")
            raise UserError(
                f"{name} was {was!r} in training and is {now!r} now",
                hint=f"leave out the overrides of {name}.*: the network belongs to it",
            )


def _say(message: str) -> None:
    typer.echo(message, err=True)
