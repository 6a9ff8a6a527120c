"""The `end2race` command."""

from functools import partial

from loom.cli import application, run_app

import end2race

app = application("end2race", end2race.__doc__)
main = partial(run_app, app)
