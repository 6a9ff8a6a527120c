"""Errors that a command shows to its user, as opposed to bugs.

A `UserError` says what is wrong and what to do about it; a CLI prints it as two lines, `error:` and
`hint:`, and exits with its code. Any other exception is a bug: exit code 1, and a traceback with
`--debug`.
"""


class UserError(Exception):
    """Something the user can mend: bad input, bad configuration, a missing tool."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class GateMissed(UserError):
    """A required value was not reached; the run itself worked."""

    exit_code = 3
