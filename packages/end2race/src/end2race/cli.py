"""The `end2race` command."""

from functools import partial

from loom.cli import add_config_commands, application, run_app

import end2race
from end2race.commands import cache, evaluate, importing, memory, simulate, train


def _checks():
    from end2race.doctor import checks

    return checks()


app = application("end2race", end2race.__doc__, checks=_checks)
# The notes write --data_root; every command and option is taken with underscores too.
app.info.context_settings = {
    **(app.info.context_settings or {}),
    "token_normalize_func": lambda name: name.replace("_", "-"),
}
main = partial(run_app, app)

simulate.register(app)
train.register(app)
evaluate.register(app)
cache.register(app)
memory.register(app)
importing.register(app)
add_config_commands(app, "end2race.config:StudentConfig")
