"""The part of the Kubernetes API that the autoscaler uses, with a time limit for every call and our own errors."""

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.autoscaler.metrics import API_SECONDS
from services.runtime.errors import Unavailable

# After which the server ends a watch, and it is begun anew: a connection that died in silence is noticed then.
WATCH_S = 240
FIELD_MANAGER = "moonshard-autoscaler"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Statuses with which a server that has too much to do asks for a pause.
BUSY = frozenset({429, 503})


class ApiFailed(Unavailable):
    """The Kubernetes API refused a call, or did not answer in time. `status` is that of HTTP, 0 for no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Conflict(ApiFailed):
    """Somebody else changed the object first. Read it again."""


class Gone(ApiFailed):
    """The history that a watch wanted is not kept any more. List again."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A StatefulSet or a Deployment, as it was at a version."""

    pods: int
    ready_pods: int
    version: str


@dataclass(frozen=True, slots=True)
class Target:
    """Which one: kind is "statefulset" or "deployment"."""

    kind: str
    name: str


class KubernetesApi:
    """One connection pool to the API server. Close it.

    server  its URL; empty: that of the cluster this pod runs in, with the pod's service account
    """

    def __init__(self, namespace: str, server: str, timeout_s: float) -> None:
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._client = _connect(server, timeout_s)

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()

    async def workload(self, target: Target) -> Workload:
        """As it is now. ApiFailed with status 404 if there is none."""
        listed = await self._call("list", "GET", self._list_path(target), query=_only(target))
        if not listed["items"]:
            raise ApiFailed(f"there is no {target.kind} {target.name} in {self._namespace}", 404)
        return _workload(listed["items"][0], listed["metadata"]["resourceVersion"])

    async def watch(self, target: Target, version: str) -> AsyncGenerator[Workload]:
        """What it becomes after a version, until the server ends the watch. Gone if that is too long ago."""
        query = _only(target) | {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)}
        silence = httpx.Timeout(self._timeout_s, read=WATCH_S + self._timeout_s)
        try:
            async with self._client.stream("GET", self._list_path(target), params=query, timeout=silence) as response:
                if response.is_error:
                    raise _failure(response.status_code, f"watch: {response.status_code} {response.reason_phrase}")
                async for line in _lines(response):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _failure(event["object"].get("code", 0), event["object"].get("message", "watch failed"))
                    if event["type"] == "DELETED":
                        raise ApiFailed(f"{target.kind} {target.name} was deleted", 404)
                    yield _workload(event["object"], event["object"]["metadata"]["resourceVersion"])
        except (httpx.HTTPError, ValueError) as error:
            raise ApiFailed(f"watch broke: {error or type(error).__name__}") from error

    async def scale(self, target: Target, pods: int) -> None:
        """Set the number of pods. Conflict if another client did meanwhile."""
        path = f"{self._list_path(target)}/{target.name}/scale"
        scale = await self._call("get scale", "GET", path)
        if scale["spec"].get("replicas", 0) != pods:
            scale["spec"]["replicas"] = pods
            await self._call("put scale", "PUT", path, query={"fieldManager": FIELD_MANAGER}, body=scale)

    async def read_lease(self, name: str) -> dict[str, Any] | None:
        """The Lease of that name, or None."""
        try:
            return await self._call("get lease", "GET", f"{self._leases_path}/{name}")
        except ApiFailed as failed:
            if failed.status != 404:
                raise
            return None

    async def write_lease(self, name: str, lease: dict[str, Any]) -> None:
        """Create a Lease, or replace the version that was read. Conflict if another client was faster."""
        if "metadata" in lease:
            await self._call("put lease", "PUT", f"{self._leases_path}/{name}", body=lease)
            return
        new = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}
        await self._call("create lease", "POST", self._leases_path, body=new | lease)

    async def read_secret(self, name: str) -> dict[str, str]:
        """Its data, in base64 by key. ApiFailed with status 404 if there is no such secret."""
        found = await self._call("get secret", "GET", self._secret_path(name))
        return dict(found.get("data") or {})

    async def patch_secret(self, name: str, data: Mapping[str, str]) -> None:
        """Set these keys, in base64, and leave the others alone."""
        await self._call("patch secret", "PATCH", self._secret_path(name), body={"data": dict(data)})

    @property
    def _leases_path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    def _secret_path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self._namespace}/secrets/{name}"

    def _list_path(self, target: Target) -> str:
        return f"/apis/apps/v1/namespaces/{self._namespace}/{target.kind}s"

    async def _call(
        self,
        name: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The answer's object. A server that asks for a pause gets it, within the time limit."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        content = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": kind}
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    response = await self._client.request(method, path, params=query, content=content, headers=headers)
                    pause = response.headers.get("Retry-After", "")
                    if response.status_code not in BUSY or not pause.isdigit():
                        break
                    await asyncio.sleep(int(pause))
            if response.is_error:
                status = response.status_code
                raise _failure(status, f"{name}: {status} {response.reason_phrase}")
            found: dict[str, Any] = response.json()
            return found
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            raise ApiFailed(f"{name}: {error or f'no answer within {self._timeout_s:g} s'}") from error
        finally:
            API_SECONDS.labels(name).set(time.monotonic() - started_s)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a body as they come. Only line feeds end one: httpx's own lines end at characters of strings too."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


class _PodToken(httpx.Auth):
    """The token of the pod's service account, read for every call because it is replaced every hour."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        request.headers["Authorization"] = f"Bearer {(SERVICE_ACCOUNT / 'token').read_text().strip()}"
        yield request


def _connect(server: str, timeout_s: float) -> httpx.AsyncClient:
    if server:
        return httpx.AsyncClient(base_url=server, timeout=timeout_s, trust_env=False)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        context = ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))
    except OSError as error:
        raise Unavailable(f"MOONSHARD_API_SERVER is not set, and this is no pod: {error}") from error
    if not host:
        raise Unavailable("MOONSHARD_API_SERVER is not set, and this is no pod: KUBERNETES_SERVICE_HOST is not set")
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, trust_env=False, verify=context, auth=_PodToken())


def _only(target: Target) -> dict[str, str]:
    return {"fieldSelector": f"metadata.name={target.name}"}


def _workload(found: dict[str, Any], version: str) -> Workload:
    pods, ready = found["spec"].get("replicas"), found.get("status", {}).get("readyReplicas")
    return Workload(1 if pods is None else pods, ready or 0, version)


def _failure(status: int, message: str) -> ApiFailed:
    return {409: Conflict, 410: Gone}.get(status, ApiFailed)(message, status)
