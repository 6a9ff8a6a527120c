"""Which vehicles a training step sees: a pure function of (seed, step, rank, world).

The batch is fixed for all processes together and split among them, so their number changes speed
only. The number of vehicles is drawn per step, since a batch needs one; the vehicles of a set are
drawn by the set's position in the endless stream of sets, so no process needs another's draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loom.errors import UserError
from loom.sampling import Shard, draw_rng, epoch_indices

from coopcyl.data.tree import AgentFrame, Frame

_ALONE = Shard()


@dataclass(frozen=True)
class SampledSet:
    """One sample: a frame's vehicles, the reference first.

    Attributes:
        agents: The chosen vehicles; roadside units are never first.
        position: Of the sample in the run's endless stream of samples.
    """

    agents: tuple[AgentFrame, ...]
    position: int


class SetSampler:
    """Draws sets of vehicles from frames.

    Args:
        frames: Of a `Tree`.
        seed: Of the order and of every draw.
        global_batch: Sets per step over all processes.
        views: Smallest and largest number of vehicles in a set.
    """

    def __init__(
        self, frames: Sequence[Frame], seed: int, global_batch: int, views: tuple[int, int] = (2, 2)
    ) -> None:
        least, most = views
        if not 1 <= least <= most:
            raise ValueError(f"views {views}: the first is at least 1 and at most the second")
        self._pools = {}
        for count in range(least, most + 1):
            pool = [f for f in frames if len(f.agents) >= count and f.agents[0].agent >= 0]
            if pool:
                self._pools[count] = pool
        if least not in self._pools:
            largest = max((len(frame.agents) for frame in frames), default=0)
            raise UserError(
                f"no frame has {least} vehicles; the largest of {len(frames)} has {largest}",
                hint="lower dataset.views, or take a split with more vehicles per scenario",
            )
        self.seed = seed
        self.global_batch = global_batch

    def view_count(self, step: int) -> int:
        """Return the number of vehicles in each set of a step."""
        counts = list(self._pools)
        return counts[draw_rng(self.seed, step, "view count").integers(len(counts))]

    def sets(self, step: int, shard: Shard = _ALONE) -> list[SampledSet]:
        """Return the sets of a step that belong to one process."""
        count = self.view_count(step)
        pool = self._pools[count]
        indices = epoch_indices(len(pool), self.seed + count, step, self.global_batch, shard)
        begin, _ = shard.bounds(self.global_batch)
        first = step * self.global_batch + begin
        return [
            SampledSet(self._choose(pool[index], count, first + offset), first + offset)
            for offset, index in enumerate(indices)
        ]

    def _choose(self, frame: Frame, count: int, position: int) -> tuple[AgentFrame, ...]:
        """Draw the vehicles of one set; the reference is not a roadside unit."""
        rng = draw_rng(self.seed, position, "vehicles")
        order = [frame.agents[i] for i in rng.permutation(len(frame.agents))]
        reference = next(agent for agent in order if agent.agent >= 0)
        others = [agent for agent in order if agent is not reference]
        return (reference, *others[: count - 1])
