"""How busy a replica is, for its callers."""

from dataclasses import dataclass

from services.attention.engine.generation import Phase
from services.attention.engine.roster import Roster


@dataclass(frozen=True)
class Load:
    """As of the last step."""

    num_running: int = 0
    num_waiting: int = 0
    num_queued_tokens: int = 0
    num_free_blocks: int = 0


def load_of(roster: Roster) -> Load:
    waiting = roster.of(Phase.WAITING)
    to_compute = [*waiting, *roster.of(Phase.FETCHING), *roster.of(Phase.RUNNING)]
    return Load(
        num_running=len(roster.everyone()) - len(waiting),
        num_waiting=len(waiting),
        num_queued_tokens=sum(generation.num_remaining for generation in to_compute),
        num_free_blocks=roster.pool.num_free,
    )
