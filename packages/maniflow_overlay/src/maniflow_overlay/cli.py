"""The `maniflow-overlay` command."""

from functools import partial

from loom.cli import application, run_app

import maniflow_overlay

app = application("maniflow-overlay", maniflow_overlay.__doc__)
main = partial(run_app, app)
