"""A whole cluster on this machine, as `moonshard up`, tests and benchmarks start it."""

import os
from collections.abc import Mapping
from pathlib import Path

from services.local.child import Child, Reporter
from services.local.cluster_log import ClusterLog
from services.local.environment import cluster_environment
from services.local.processes import ProcessSpec
from services.local.restart import RestartPolicy
from services.local.run_folder import ProcessState, RunFolder
from services.local.scaling import CONTROL, Scaling
from services.local.supervisor import Supervisor
from services.local.topology import Topology, process_specs


class LocalCluster:
    """Sockets, log and processes of one cluster. Created, started and stopped on one event loop.

    `stop` must be called in every case, also after a failed start; then only the log is left.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        redis_program: str,
        environ: Mapping[str, str],
        log_path: Path,
        reporter: Reporter,
        policy: RestartPolicy | None = None,
    ) -> None:
        self.topology = topology
        self.log = ClusterLog(log_path)
        self.folder = RunFolder()
        self.specs: list[ProcessSpec] = process_specs(topology, self.folder, redis_program)
        is_crowded = topology.num_threads > num_cores()
        environment = cluster_environment(environ, topology.threads.attention, is_crowded=is_crowded)
        self.supervisor = Supervisor(self.specs, environment, self.log, reporter, policy)
        self.scaling = Scaling(self.supervisor, self.folder.socket(CONTROL))

    @property
    def children(self) -> Mapping[str, Child]:
        return self.supervisor.children

    def process_states(self) -> list[ProcessState]:
        return [
            ProcessState(
                name, child.pid or 0, f"{child.state.value} {child.loading or ''}".rstrip(), child.spec.address
            )
            for name, child in self.children.items()
        ]

    async def start(self, stall_s: float) -> None:
        """Return when every process serves; see `Supervisor.start` for failures."""
        if self.topology.idle_s is not None:
            await self.scaling.open()
        await self.supervisor.start(stall_s)

    async def stop(self) -> None:
        """Stop the processes in order and remove their sockets."""
        try:
            await self.scaling.close()
            await self.supervisor.stop()
        finally:
            self.folder.close()
            self.log.close()


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
