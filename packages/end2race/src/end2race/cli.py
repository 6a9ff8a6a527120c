"""The `end2race` command."""

from functools import partial

from loom.cli import application, run_app

import end2race
from end2race.commands import train

app = application("end2race", end2race.__doc__)
train.register(app)
main = partial(run_app, app)
