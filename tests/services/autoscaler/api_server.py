"""A Kubernetes API server with workloads, their scale subresource, watches and Leases, kept to the API's rules.

Every write has a new resourceVersion; a replace with an old one is a conflict. A watch begins after a version, and
after a compaction that is refused with 410. Tests make it slow, busy or wrong on purpose.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Self

from aiohttp import web

NAMESPACE = "serving"
APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


class ApiServer:
    """Serves while it is entered. `writes` are what was written: (user agent's verb, name, replicas or holder).

    delay_s     before every answer
    pauses      answers left that are 429 with Retry-After
    conflicts   writes left before which somebody else changes the object
    ready_s     after which pods that were asked for are ready
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.pauses = 0
        self.conflicts = 0
        self.ready_s = 0.0
        self.writes: list[tuple[str, str, Any]] = []
        self.calls: Counter[str] = Counter()
        self._version = 100
        self._oldest = 0
        self._objects: dict[str, dict[str, Any]] = {}
        self._history: deque[tuple[int, str]] = deque(maxlen=1000)
        self._changed = asyncio.Condition()
        self._kubelets: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._middleware])
        for kind in ("statefulsets", "deployments"):
            app.router.add_get(f"{APPS}/{kind}", self._list)
            app.router.add_get(f"{APPS}/{kind}/{{name}}/scale", self._get_scale)
            app.router.add_put(f"{APPS}/{kind}/{{name}}/scale", self._put_scale)
        app.router.add_post(LEASES, self._post_lease)
        app.router.add_get(f"{LEASES}/{{name}}", self._get_lease)
        app.router.add_put(f"{LEASES}/{{name}}", self._put_lease)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for kubelet in self._kubelets:
            kubelet.cancel()
        await self._runner.cleanup()

    async def add(self, kind: str, name: str, replicas: int = 0) -> None:
        """Create a workload whose pods are all ready."""
        await self._write(f"{kind}/{name}", {"spec": {"replicas": replicas}, "status": {"readyReplicas": replicas}})

    async def apply(self, manifest: Mapping[str, Any]) -> None:
        """Create a StatefulSet or Deployment as `kubectl apply` does: without spec.replicas it gets one pod.

        Its pods become ready after `ready_s`.
        """
        key = f"{manifest['kind'].lower()}s/{manifest['metadata']['name']}"
        await self._write(key, {"spec": {"replicas": manifest["spec"].get("replicas", 1)}})

    async def remove(self, kind: str, name: str) -> None:
        """Delete it, which ends its watches."""
        self._objects[f"{kind}/{name}"]["deleted"] = True
        await self._write(f"{kind}/{name}", {})
        del self._objects[f"{kind}/{name}"]

    async def set_replicas(self, key: str, replicas: int) -> None:
        """Somebody else scales."""
        await self._write(key, {"spec": {"replicas": replicas}})

    async def compact(self) -> None:
        """Forgets all history, and ends every watch with 410."""
        self._version += 1
        self._oldest = self._version
        async with self._changed:
            self._changed.notify_all()

    def replicas(self, key: str) -> int:
        """What is asked for now."""
        return int(self._objects[key]["spec"]["replicas"])

    def lease(self, name: str) -> dict[str, Any]:
        """Its spec; of one that does not exist, that nobody holds it."""
        return {"holderIdentity": None, **self._objects.get(f"leases/{name}", {}).get("spec", {})}

    async def add_lease(self, name: str) -> None:
        """Create a Lease as the chart does, without a spec."""
        await self._write(f"leases/{name}", {})

    async def take_lease(self, name: str, holder: str) -> None:
        """Somebody else holds it from now on."""
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 15}
        await self._write(f"leases/{name}", {"spec": spec})

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls[f"{request.method} {'watch' if 'watch' in request.query else request.path.rpartition('/')[2]}"] += 1
        await asyncio.sleep(self.delay_s)
        if self.pauses:
            self.pauses -= 1
            return _status(429, "TooManyRequests", {"Retry-After": "1"})
        response: web.StreamResponse = await handler(request)
        return response

    async def _list(self, request: web.Request) -> web.StreamResponse:
        name = request.query["fieldSelector"].removeprefix("metadata.name=")
        key = f"{request.path.rpartition('/')[2]}/{name}"
        if request.query.get("watch") == "true":
            return await self._watch(request, key)
        items = [self._objects[key]] if key in self._objects else []
        return web.json_response({"kind": "List", "metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _watch(self, request: web.Request, key: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)

        async def send(kind: str, found: Any) -> None:
            await response.write(json.dumps({"type": kind, "object": found}).encode() + b"\n")

        after = int(request.query["resourceVersion"])
        try:
            async with asyncio.timeout(float(request.query["timeoutSeconds"])):
                while True:
                    if after < self._oldest:
                        await send("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
                        return response
                    for version, found in [(v, json.loads(text)) for v, text in self._history if v > after]:
                        if found["key"] == key:
                            await send("DELETED" if found["object"].get("deleted") else "MODIFIED", found["object"])
                        after = version
                    async with self._changed:
                        while self._version == after:
                            await self._changed.wait()
        except TimeoutError:
            return response

    async def _get_scale(self, request: web.Request) -> web.StreamResponse:
        found = self._objects.get(_key(request))
        return _status(404, "NotFound") if found is None else web.json_response(_scale(found))

    async def _put_scale(self, request: web.Request) -> web.StreamResponse:
        key, body = _key(request), await request.json()
        if refusal := await self._refusal(key, body):
            return refusal
        replicas = body["spec"].get("replicas", 0)
        self.writes.append(("scale", key, replicas))
        await self._write(key, {"spec": {"replicas": replicas}})
        return web.json_response(_scale(self._objects[key]))

    async def _get_lease(self, request: web.Request) -> web.StreamResponse:
        found = self._objects.get(f"leases/{request.match_info['name']}")
        return _status(404, "NotFound") if found is None else web.json_response(found)

    async def _post_lease(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        key = f"leases/{body['metadata']['name']}"
        if self.conflicts and key not in self._objects:
            self.conflicts -= 1
            await self.take_lease(body["metadata"]["name"], "somebody")
        if key in self._objects:
            return _status(409, "AlreadyExists")
        return await self._keep_lease(key, body)

    async def _put_lease(self, request: web.Request) -> web.StreamResponse:
        key, body = f"leases/{request.match_info['name']}", await request.json()
        if refusal := await self._refusal(key, body):
            return refusal
        return await self._keep_lease(key, body)

    async def _keep_lease(self, key: str, body: dict[str, Any]) -> web.StreamResponse:
        self.writes.append(("lease", key, body["spec"].get("holderIdentity")))
        await self._write(key, {"spec": body["spec"]})
        return web.json_response(self._objects[key])

    async def _refusal(self, key: str, body: dict[str, Any]) -> web.Response | None:
        if key not in self._objects:
            return _status(404, "NotFound")
        if self.conflicts:
            self.conflicts -= 1
            await self._write(key, {})
        if body["metadata"].get("resourceVersion") != self._objects[key]["metadata"]["resourceVersion"]:
            return _status(409, "Conflict")
        return None

    async def _write(self, key: str, changes: dict[str, Any]) -> None:
        self._version += 1
        metadata = {"name": key.partition("/")[2], "namespace": NAMESPACE, "resourceVersion": str(self._version)}
        self._objects[key] = {"status": {}, **self._objects.get(key, {}), **changes, "metadata": metadata}
        self._history.append((self._version, json.dumps({"key": key, "object": self._objects[key]})))
        async with self._changed:
            self._changed.notify_all()
        if "spec" in changes and "replicas" in changes["spec"] and "status" not in changes:
            kubelet = asyncio.create_task(self._become_ready(key, changes["spec"]["replicas"]))
            self._kubelets.add(kubelet)
            kubelet.add_done_callback(self._kubelets.discard)

    async def _become_ready(self, key: str, replicas: int) -> None:
        await asyncio.sleep(self.ready_s)
        if key in self._objects and self._objects[key]["spec"]["replicas"] == replicas:
            await self._write(key, {"status": {"readyReplicas": replicas}})


def _key(request: web.Request) -> str:
    return f"{request.path.split('/')[-3]}/{request.match_info['name']}"


def _scale(found: dict[str, Any]) -> dict[str, Any]:
    replicas = found["spec"]["replicas"]
    status = {"replicas": replicas}
    spec = {"replicas": replicas} if replicas else {}  # a zero is left out, as the API does
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": found["metadata"],
        "spec": spec,
        "status": status,
    }


def _status(code: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code}
    return web.json_response(body, status=code, headers=headers)
