"""PinPad, exactly: one room at a time, many at once, and what can be said of it.

Importing this package registers `Pinpad-Three-v0` to `Pinpad-Eight-v0` with gymnasium.
"""

from pinpad.envs.registration import register_all

register_all()
