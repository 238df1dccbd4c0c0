"""The memory that this process may still take: the smallest remainder of the machine and its control groups."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

PROC_CGROUP: Final = Path("/proc/self/cgroup")
CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
GIB: Final = 1 << 30
# Version 1 writes a number near 2^63 for "no limit".
_NO_LIMIT_BYTES: Final = 1 << 60


@dataclass(frozen=True)
class Room:
    """Bytes that can still be taken, and a description of the limit."""

    num_bytes: int
    limit: str


def find_room(proc_cgroup: Path = PROC_CGROUP, cgroup_root: Path = CGROUP_ROOT) -> Room:
    """Return the smallest room of all limits. Page cache counts as free, because the kernel can drop it."""
    memory = psutil.virtual_memory()
    machine = Room(memory.available, f"this machine has {gib(memory.available)} of its {gib(memory.total)} left")
    return min([machine, *_cgroup_rooms(proc_cgroup, cgroup_root)], key=lambda room: room.num_bytes)


def gib(num_bytes: int) -> str:
    """Format bytes for users: "1.5 GiB"."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB // 10 else f"{num_bytes / (1 << 20):.1f} MiB"


def _cgroup_rooms(proc_cgroup: Path, root: Path) -> Iterator[Room]:
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _rooms(root, path, "memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            yield from _rooms(root / "memory", path, *names, ("total_inactive_file", "total_active_file"))


def _rooms(mount: Path, path: str, limit_file: str, usage_file: str, cache: tuple[str, ...]) -> Iterator[Room]:
    """Yield the rooms of a group and all its parents. In a container the mount itself may be the group."""
    group = mount / path.lstrip("/")
    while group.is_relative_to(mount):
        try:
            limit = (group / limit_file).read_text().strip()
            used = int((group / usage_file).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            if limit != "max" and int(limit) < _NO_LIMIT_BYTES:
                left = max(0, int(limit) - used + sum(int(stat.get(name, 0)) for name in cache))
                yield Room(left, f"its control group ({limit_file}) has {gib(left)} of its {gib(int(limit))} left")
        except (OSError, ValueError):
            # The root group has no limit, and in a container the host's path does not exist.
            pass
        if group == mount:
            return
        group = group.parent
