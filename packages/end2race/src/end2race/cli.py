"""The `end2race` command."""

from functools import partial

from loom.cli import application, run_app

import end2race
from end2race.commands import cache, evaluate, importing, memory, simulate, train


def _checks():
    from end2race.doctor import checks

    return checks()


app = application("end2race", end2race.__doc__, checks=_checks)
main = partial(run_app, app)

simulate.register(app)
train.register(app)
evaluate.register(app)
cache.register(app)
memory.register(app)
importing.register(app)
