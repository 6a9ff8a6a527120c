"""The native libraries of this package, for `loom ext build`."""

from end2race.models import pillars, splat

LIBRARIES = {
    "end2race_pillar": pillars.library,
    "end2race_splat": splat.library,
}
