"""All processes of a cluster: started together, supervised, stopped in order."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from services.local.child import Child, ProcessFailed, Reporter
from services.local.cluster_log import ClusterLog
from services.local.processes import ProcessSpec
from services.local.restart import RestartPolicy


class Supervisor:
    """Owns the processes from the first start to the last exit. All methods run on one event loop.

    All processes start in parallel. Each waits by itself for those that it needs, as it must after any crash.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        environ: Mapping[str, str],
        log: ClusterLog,
        reporter: Reporter,
        policy: RestartPolicy | None = None,
    ) -> None:
        assert len({spec.name for spec in specs}) == len(specs), "names of processes are unique"
        self.children = {spec.name: Child(spec, environ, log, policy or RestartPolicy(), reporter) for spec in specs}
        self._log = log
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[ProcessFailed] = asyncio.get_running_loop().create_future()
        self._hurry = asyncio.Event()

    async def start(self, stall_s: float) -> None:
        """Return when all processes serve. Raises ProcessFailed if one fails, or none gets further for `stall_s`.

        A start as a whole has no time limit: loading takes as long as the checkpoint is large.

        Processes that run on demand are asleep at first.
        """
        for child in self.children.values():
            if child.spec.role:
                await child.sleep(self._hurry)
        self._tasks = [asyncio.create_task(self._keep(child)) for child in self.children.values()]
        waits = [asyncio.create_task(self._wait_all_ready()), asyncio.create_task(self._wait_failed())]
        started_at = time.monotonic()
        while (left_s := stall_s - (time.monotonic() - max(started_at, self._progressed_at))) > 0:
            if (await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED))[0]:
                break
        for wait in waits:
            wait.cancel()
        if self._failure.done():
            raise self._failure.result()
        late = [child.spec.name for child in self.children.values() if not (child.is_ready or child.is_asleep)]
        if late:
            others = f"; nor do {', '.join(late[1:])}" if late[1:] else ""
            reason = f"does not serve, and nothing got further for {stall_s:g} s{others}"
            raise ProcessFailed(late[0], reason, self._log.last(late[0]))

    async def failure(self) -> ProcessFailed:
        """Wait for a process that cannot be kept running, and return its failure."""
        return await asyncio.shield(self._failure)

    def hurry(self) -> None:
        """End every grace: kill processes that have not stopped by themselves yet."""
        self._hurry.set()

    async def set_asleep(self, names: Sequence[str], *, asleep: bool) -> None:
        """End these processes in order, or wake them."""
        for name in names:
            if not asleep:
                self.children[name].wake()
        if asleep:
            await asyncio.gather(*(self.children[name].sleep(self._hurry) for name in names))

    async def stop(self) -> None:
        """Stop stage by stage; return when no process is left. May be called at any time, also twice."""
        for stage in sorted({child.spec.stop_stage for child in self.children.values()}):
            members = [child for child in self.children.values() if child.spec.stop_stage == stage]
            await asyncio.gather(*(child.stop(self._hurry) for child in members))
        await asyncio.gather(*self._tasks)

    @property
    def _progressed_at(self) -> float:
        return max(child.progressed_at for child in self.children.values())

    async def _wait_all_ready(self) -> None:
        for child in self.children.values():
            if not child.is_asleep:
                await child.wait_ready()

    async def _wait_failed(self) -> None:
        await self.failure()

    async def _keep(self, child: Child) -> None:
        try:
            await child.run()
        except ProcessFailed as failure:
            if not self._failure.done():
                self._failure.set_result(failure)
