"""How bad data is reported: file, place, value and remedy, never a stack trace."""

from loom.errors import UserError


class DataError(UserError):
    """A file of the data set that is missing, damaged or contradicts another one."""
