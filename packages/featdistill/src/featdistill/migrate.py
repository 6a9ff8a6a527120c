"""Old configurations without the keys that were removed since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from loom.config import read_yaml, resolve
from loom.errors import UserError
from loom.files import write_atomic

from featdistill.config import TrainConfig


def migrate_config(old: Path, new: Path) -> str:
    """Write a configuration without its removed keys; return what was dropped, in sentences.

    Raises:
        UserError: The old file is damaged, the new one exists, or the rest is no configuration
            either; nothing is written then.
    """
    if new.exists():
        raise UserError(f"{new} exists already", hint="give another name")
    content = read_yaml(old)
    dropped = list(_drop(content, ""))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    draft = new.with_name(f".{new.name}.draft")
    write_atomic(draft, text)
    try:
        resolve(TrainConfig, draft)
    except UserError as error:
        raise UserError(error.message.replace(str(draft), str(old)), hint=error.hint) from error
    finally:
        draft.unlink()
    write_atomic(new, text)
    lines = [f"dropped {path}: {why}" for path, why in dropped] or ["nothing had to be dropped"]
    return "\n".join([*lines, f"written to {new}"])


def _drop(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Remove the keys in place and yield where each was and what to do instead."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _drop(item, f"{path}{index}.")
    if not isinstance(value, dict):
        return
    for key in list(value):
        if key in TrainConfig.removed_keys:
            del value[key]
            yield path + key, TrainConfig.removed_keys[key]
        else:
            yield from _drop(value[key], f"{path}{key}.")
