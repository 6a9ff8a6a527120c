"""How the tests of sweeps call `pinpad` in their own process, and what makes a sweep small."""

from click.testing import Result
from pinpad.cli import app
from typer.testing import CliRunner

SMALL = ("prefill=40", "time_limit=20")


def pinpad(*arguments) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
