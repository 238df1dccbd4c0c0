"""Threads for the tensor arithmetic of each process."""

from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True)
class Threads:
    """Threads of one process by role."""

    attention: int = 1
    expert: int = 1
    vision: int = 1

    @classmethod
    def same(cls, number: int) -> Self:
        return cls(number, number, number)

    def __str__(self) -> str:
        return f"Threads: attention {self.attention}, experts {self.expert}, vision {self.vision} in each process."


def share_cores(
    num_cores: int, *, prefills: int, decodes: int, attention_shards: int, expert_processes: int, visions: int
) -> Threads:
    """Give processes that take turns all cores each, and those that compute at the same time a share each.

    Attention waits while its experts compute, and they wait for it; expert shards compute at the same time, and so do
    replicas. A prefill replica shares cores with decode replicas only while it has a prompt.
    """
    num_processes = (prefills + decodes) * attention_shards + expert_processes + visions
    share = max(1, num_cores // num_processes)
    if not expert_processes:
        return Threads.same(share)
    return Threads(
        attention=max(1, num_cores // max(prefills, decodes)),
        expert=max(1, num_cores // expert_processes),
        vision=share,
    )


ONE_EACH: Final = Threads()
