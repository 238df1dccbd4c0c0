"""Which autoscaler decides: the one that holds the Lease."""

import asyncio
import datetime
import logging
import time
from typing import Any

from services.autoscaler.kubernetes_api import ApiFailed, KubernetesApi
from services.autoscaler.metrics import LEADER

log = logging.getLogger(__name__)

# Of the Lease's duration: how often it is renewed, and after what it counts as lost if it could not be.
RENEW = 1 / 5
SURE = 2 / 3


class Lease:
    """A Lease of coordination.k8s.io, renewed while it is held. `changed` is set when that begins or ends.

    Clocks are not compared: another holder's Lease has expired when it was not renewed for its duration here. The
    holder itself stops before that, so there are never two.
    """

    def __init__(self, api: KubernetesApi, name: str, holder: str, duration_s: float, changed: asyncio.Event) -> None:
        self._api = api
        self._name = name
        self._holder = holder
        self._duration_s = duration_s
        self._changed = changed
        self._sure_until_s = 0.0
        self._was_held = False
        self._seen = ("", 0.0)  # version of another's Lease, and since when it is this one

    @property
    def held(self) -> bool:
        """Whether this process may act now."""
        return time.monotonic() < self._sure_until_s

    async def run(self) -> None:
        """Take and renew it, until cancelled."""
        while True:
            started_s = time.monotonic()
            try:
                if await self._take():
                    self._sure_until_s = started_s + SURE * self._duration_s
            except ApiFailed as failed:
                log.warning("lease: %s", failed)
            self._report()
            await asyncio.sleep(RENEW * self._duration_s)

    async def release(self) -> None:
        """Give it back, so that its successor need not wait for its expiry."""
        # A renewal may be late: what was taken is given back even where it is not sure to be held any more.
        if self._sure_until_s == 0.0:
            return
        self._sure_until_s = 0.0
        self._report()
        lease = await self._api.read_lease(self._name)
        if lease is not None and lease.get("spec", {}).get("holderIdentity") == self._holder:
            lease["spec"]["holderIdentity"] = ""
            await self._api.write_lease(self._name, lease)

    async def _take(self) -> bool:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        lease = await self._api.read_lease(self._name)
        if lease is None or not lease.get("spec"):
            # The chart makes it without a spec.
            lease = (lease or {}) | {"spec": {"acquireTime": now, "leaseTransitions": 0}}
        elif lease["spec"].get("holderIdentity") != self._holder:
            if not self._is_free(lease):
                return False
            lease["spec"]["acquireTime"] = now
            lease["spec"]["leaseTransitions"] = lease["spec"].get("leaseTransitions", 0) + 1
        seconds = max(1, round(self._duration_s))
        lease["spec"] |= {"holderIdentity": self._holder, "renewTime": now, "leaseDurationSeconds": seconds}
        await self._api.write_lease(self._name, lease)
        return True

    def _is_free(self, lease: dict[str, Any]) -> bool:
        version, since_s = self._seen
        holder = lease["spec"].get("holderIdentity")
        if lease["metadata"]["resourceVersion"] != version:
            self._seen = lease["metadata"]["resourceVersion"], time.monotonic()
            return not holder
        return not holder or time.monotonic() - since_s > self._duration_s

    def _report(self) -> None:
        if self.held != self._was_held:
            self._was_held = self.held
            log.info("leading" if self.held else "not leading", extra={"holder": self._holder})
            LEADER.set(self.held)
            self._changed.set()
