"""The whole job in small: record episodes, learn two world models, judge and draw, one page."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from pinpad.sweep import execute
from pinpad.sweep.conditions import Conditions

CONDITIONS: Conditions = {
    "rssm": {"dynamics_type": "rssm"},
    "vta": {
        "dynamics_type": "vta",
        "vta": "detect",
        "vta_boundary_rate": 0.1,
        "vta_boundary_scale": 0.5,
    },
}
SETTINGS = (
    "wm_only=true",
    "updates=200",
    "eval_every=100",
    "prefill=20000",
    "players=uniform=1,sticky=1,babble=1,oracle:0.1=1",
    "time_limit=1000",
)
"""What makes two models of pinpad_three short, and long enough to predict better than a copy."""


def run_demo(root: Path | None, say: Callable[[str], None] = print) -> bool:
    """Run the demo in a fresh log root; return whether everything went well."""
    root = root or execute.new_log_root("demo")
    settings = execute.settings_from(
        {"conditions": {k: dict(v) for k, v in CONDITIONS.items()}, "overrides": SETTINGS}
    )
    execute.begin(settings, root, None)
    done = execute.run_sweep(settings, root, say=say)
    spent = os.times()
    seconds = time.process_time() + spent.children_user + spent.children_system
    say(f"{seconds:.0f} CPU-seconds in all")
    return done
