"""An old configuration loses exactly its removed keys."""

from pathlib import Path

import pytest
from featdistill.config import TrainConfig
from featdistill.migrate import migrate_config
from loom.config import resolve
from loom.errors import UserError

CANONICAL = Path(__file__).parent / "canonical.yaml"


def test_removed_keys_are_dropped_and_named_and_the_rest_is_kept(tmp_path):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    text = CANONICAL.read_text(encoding="utf-8")
    old.write_text(
        text.replace("optimize: [projector]", "optimize: [projector], freeze_student: true")
    )
    said = migrate_config(old, new)
    assert "train.phases.0.freeze_student" in said
    assert resolve(TrainConfig, new).config == resolve(TrainConfig, CANONICAL).config


def test_an_existing_file_is_not_overwritten(tmp_path):
    new = tmp_path / "new.yaml"
    new.write_text("mine")
    with pytest.raises(UserError, match="exists"):
        migrate_config(CANONICAL, new)
    assert new.read_text() == "mine"


def test_a_key_that_is_simply_wrong_is_not_dropped(tmp_path):
    old = tmp_path / "old.yaml"
    old.write_text("train: {learning_rate: 1.0}")
    with pytest.raises(UserError, match="learning_rate"):
        migrate_config(old, tmp_path / "new.yaml")
    assert list(tmp_path.iterdir()) == [old]
