"""The notes' configuration loads, and every value over time is a function of the step."""

import math
from pathlib import Path

import pytest
from featdistill.config import TrainConfig
from loom.config import parse_yaml, resolve, to_yaml
from loom.errors import UserError

CANONICAL = Path(__file__).parent / "canonical.yaml"


def load(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return resolve(TrainConfig, path, overrides).config


def test_the_notes_canonical_config_loads_with_its_values(tmp_path):
    config = load(tmp_path, CANONICAL.read_text(encoding="utf-8"))
    assert config.train.lr == 5e-4
    assert [p.optimize for p in config.train.phases] == [("projector",), ("student", "projector")]
    assert config.loss.opacity.target == 0.05
    assert config.loss.feature_l2.warmup.steps == 4000
    assert config.train.max_steps == 50_000


def test_the_notes_key_without_a_space_is_read_and_named():
    notices = resolve(TrainConfig, CANONICAL).notices
    assert any("`feature_cos:`" in notice and ":30:" in notice for notice in notices)


@pytest.mark.parametrize("key", ["freeze_student", "force_feature_on", "phase_feature_scale"])
def test_a_removed_key_says_what_to_do_instead(tmp_path, key):
    text = CANONICAL.read_text(encoding="utf-8").replace(
        "optimize: [projector]", f"optimize: [projector], {key}: true"
    )
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert f"train.phases.0.{key}" in str(caught.value)
    assert "removed" in str(caught.value)


def test_a_misspelt_key_is_named_with_its_path(tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path, "loss: {colour: {weight: 1.0}}")
    assert "loss.colour" in str(caught.value)
    assert "color" in str(caught.value) + caught.value.hint


def test_the_saved_config_is_the_config(tmp_path):
    config = load(tmp_path, CANONICAL.read_text(encoding="utf-8"), "train.lr=1e-3", "seed=7")
    again = load(tmp_path, to_yaml(config))
    assert again == config
    assert parse_yaml(to_yaml(config), "saved")["train"]["lr"] == 1e-3


def test_phases_cover_every_step():
    train = TrainConfig().train
    first, last = train.phases
    assert train.phase_at(0) is first
    assert train.phase_at(first.end_step - 1) is first
    assert train.phase_at(first.end_step) is last
    assert train.phase_at(10**9) is last
    assert train.image_start == first.end_step
    assert train.student_start == 0


@pytest.mark.parametrize("ends", [(5, 5), (9, 3)])
def test_phases_that_do_not_grow_are_refused(tmp_path, ends):
    phases = ", ".join(f"{{name: p, end_step: {e}, optimize: [student]}}" for e in ends)
    with pytest.raises(UserError, match="growing"):
        load(tmp_path, f"train: {{phases: [{phases}]}}")


def test_the_cosine_ends_at_its_floor_and_starts_with_a_warmup():
    train = TrainConfig().train
    start, total = train.image_start, train.max_steps - train.image_start
    warmup = int(train.lr_warmup * total)
    assert train.lr_at(start) == pytest.approx(train.lr / warmup)
    assert train.lr_at(start + warmup) == pytest.approx(train.lr)
    half = start + warmup + (total - warmup) // 2
    middle = train.lr * (1 + train.lr_floor) / 2
    assert train.lr_at(half) == pytest.approx(middle, rel=1e-2)
    assert train.lr_at(train.max_steps - 1) == pytest.approx(train.lr * train.lr_floor, rel=1e-3)


def test_shortening_a_run_keeps_an_explicit_schedule(tmp_path):
    text = CANONICAL.read_text(encoding="utf-8")
    whole, short = load(tmp_path, text), load(tmp_path, text, "train.max_steps=200")
    assert [short.train.lr_at(s) for s in (0, 199)] == [whole.train.lr_at(s) for s in (0, 199)]


def test_the_notes_opacity_weight_rises_from_its_weight_to_its_target():
    opacity = resolve(TrainConfig, CANONICAL).config.loss.opacity
    at = opacity.weight_at().at
    assert at(0) == at(2000) == 0.25
    assert at(8000) == at(50_000) == 0.35
    assert at(5000) == pytest.approx(0.25 + 0.1 * (1 - math.cos(math.pi / 2)) / 2)


def test_an_opacity_weight_that_would_fall_is_refused(tmp_path):
    with pytest.raises(UserError, match="only grow"):
        load(tmp_path, "loss: {opacity: {weight: 0.3, target_weight: 0.1}}")


def test_the_blank_check_comes_before_three_percent_of_the_students_steps():
    for config in (TrainConfig(), resolve(TrainConfig, CANONICAL).config):
        after = config.blank_check_step - config.train.student_start
        assert 0 < after < 0.03 * config.train.max_steps


def test_another_number_of_teacher_features_is_refused(tmp_path):
    with pytest.raises(UserError, match="teacher_feature_dim is 10, but the teacher has 52"):
        load(tmp_path, "student: {teacher_feature_dim: 10}")
