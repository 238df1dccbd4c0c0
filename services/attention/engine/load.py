"""What a replica has to do, as its callers are told."""

from dataclasses import dataclass

from services.attention.engine.roster import Roster


@dataclass(frozen=True)
class Load:
    """As of the last step."""

    num_running: int = 0
    num_waiting: int = 0
    num_queued_tokens: int = 0
    num_free_blocks: int = 0


def load_of(roster: Roster) -> Load:
    """The load now."""
    return Load(
        num_running=len(roster.running) + len(roster.fetching) + len(roster.leaving),
        num_waiting=len(roster.waiting),
        num_queued_tokens=sum(g.num_remaining for g in [*roster.waiting, *roster.fetching, *roster.running]),
        num_free_blocks=roster.pool.num_free,
    )
