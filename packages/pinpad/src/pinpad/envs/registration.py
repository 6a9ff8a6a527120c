"""The ids under which gymnasium makes the rooms.

    import gymnasium, pinpad.envs
    env = gymnasium.make("Pinpad-Three-v0", size=16)
    envs = gymnasium.make_vec("Pinpad-Three-v0", num_envs=64, size=16)

`gymnasium.make("pinpad.envs:Pinpad-Three-v0")` needs no import of ours.
"""

from gymnasium.envs.registration import register, registry

from pinpad.envs.layouts import LAYOUTS


def env_id(layout: str) -> str:
    """Return the gymnasium id of a layout."""
    return f"Pinpad-{layout.capitalize()}-v0"


def register_all() -> None:
    """Register every layout once; a second call changes nothing."""
    for name in LAYOUTS:
        if env_id(name) not in registry:
            register(
                env_id(name),
                entry_point="pinpad.envs.single:PinPadEnv",
                vector_entry_point="pinpad.envs.vector:PinPadVectorEnv",
                kwargs={"layout": name},
            )
