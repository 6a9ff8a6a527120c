"""The `coopcyl` command."""

from functools import partial

from loom.cli import application, run_app

import coopcyl

app = application("coopcyl", coopcyl.__doc__)
main = partial(run_app, app)
