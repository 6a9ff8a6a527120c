"""The `pinpad` command."""

from functools import partial

from loom.cli import application, run_app

import pinpad

app = application("pinpad", pinpad.__doc__)
main = partial(run_app, app)
