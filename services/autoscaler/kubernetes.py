"""Replicas as pods: watches the workloads, and sets their numbers by the scale subresource."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from services.autoscaler.kubernetes_api import ApiFailed, Conflict, Gone, KubernetesApi, Target, Workload
from services.autoscaler.lease import Lease
from services.autoscaler.policy import Current, Role
from services.autoscaler.settings import AutoscalerSettings, RoleSettings
from services.runtime.errors import Unavailable

log = logging.getLogger(__name__)

MAX_CONFLICTS = 5
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0


class KubernetesBackend:
    """A Backend that is the only one to act, by a Lease. Owns what it last saw of each workload."""

    def __init__(
        self, api: KubernetesApi, roles: Mapping[Role, RoleSettings], lease: Lease, changed: asyncio.Event
    ) -> None:
        self.changed = changed
        self._api = api
        self._lease = lease
        self._shards = {role: of.shards for role, of in roles.items()}
        self._targets = {role: Target(*of.workload.split("/")) for role, of in roles.items()}
        self._seen: dict[Role, Workload] = {}

    @property
    def current(self) -> Mapping[Role, Current]:
        """The roles that were seen; empty without the Lease."""
        return self._roles() if self._lease.held else {}

    def is_installed(self, minimum: Mapping[Role, int]) -> bool:
        """Whether every role has at least its minimum of ready replicas, and no part of one beside them."""
        roles = self._roles()
        return all(
            role in roles and roles[role].ready >= least and not roles[role].parts for role, least in minimum.items()
        )

    async def scale(self, role: Role, replicas: int) -> None:
        """Set the pods of a role; repeat when another client changed the object meanwhile."""
        for _ in range(MAX_CONFLICTS):
            if not self._lease.held:
                raise Unavailable("the lease was lost")
            try:
                await self._api.scale(self._targets[role], replicas * self._shards[role])
            except Conflict:
                continue
            return
        raise Unavailable(f"{self._targets[role].name} was changed by others {MAX_CONFLICTS} times meanwhile")

    async def run(self) -> None:
        """Watch all workloads and keep the Lease, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lease.run())
            for role in self._targets:
                group.create_task(self._watch(role))

    async def release(self) -> None:
        """Let another one decide."""
        try:
            await self._lease.release()
        except ApiFailed as failed:
            log.warning("the lease was not released: %s", failed)

    async def _watch(self, role: Role) -> None:
        """Lists, then follows; lists again whenever the watch cannot go on."""
        target = self._targets[role]
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self._see(role, await self._api.workload(target))
                while True:
                    async for workload in self._api.watch(target, self._seen[role].version):
                        pause_s = FIRST_PAUSE_S
                        self._see(role, workload)
            except Gone:
                log.info("watch expired", extra={"workload": target.name})
            except ApiFailed as failed:
                log.warning("cannot watch", extra={"workload": target.name, "reason": str(failed)})
                if failed.status == 404:
                    # Nothing is decided on what is not there.
                    self._seen.pop(role, None)
                    self.changed.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _roles(self) -> dict[Role, Current]:
        found = {}
        for role, seen in self._seen.items():
            replicas, parts = divmod(seen.pods, self._shards[role])
            found[role] = Current(replicas, min(replicas, seen.ready_pods // self._shards[role]), parts)
        return found

    def _see(self, role: Role, workload: Workload) -> None:
        self._seen[role] = workload
        self.changed.set()


@asynccontextmanager
async def kubernetes_backend(settings: AutoscalerSettings) -> AsyncIterator[KubernetesBackend]:
    """A backend for the cluster of the settings; at its end the Lease is released."""
    api = KubernetesApi(settings.namespace, settings.api_server, settings.api_s)
    changed = asyncio.Event()
    lease = Lease(api, settings.lease, settings.instance, settings.lease_s, changed)
    backend = KubernetesBackend(api, settings.roles, lease, changed)
    try:
        yield backend
    finally:
        await backend.release()
        await api.close()
