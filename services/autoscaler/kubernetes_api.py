"""The part of the Kubernetes API that the autoscaler uses, with a time limit for every call and our own errors."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.rest import RESTResponse
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.utils import is_retry_after_response, on_retry_after_error, retry_after_backoff

from services.autoscaler.metrics import API_SECONDS
from services.runtime.errors import Unavailable

# After which the server ends a watch, and it is begun anew: a connection that died in silence is noticed then.
WATCH_S = 240
FIELD_MANAGER = "moonshard-autoscaler"


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
        settings = client.Configuration(host=server or None)
        if not server:
            load: Any = config.load_incluster_config
            try:
                load(client_configuration=settings)
            except ConfigException as error:
                raise Unavailable(f"MOONSHARD_API_SERVER is not set, and this is no pod: {error}") from error
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._client: Any = client.ApiClient(settings)
        self._apps = client.AppsV1Api(self._client)
        self._coordination = client.CoordinationV1Api(self._client)

    async def close(self) -> None:
        """End all connections."""
        await self._client.close()

    async def workload(self, target: Target) -> Workload:
        """As it is now. ApiFailed with status 404 if there is none."""
        response = await self._call("list", lambda: self._open(target, self._timeout_s))
        listed = await self._call("list", response.json)
        if not listed["items"]:
            raise ApiFailed(f"there is no {target.kind} {target.name} in {self._namespace}", 404)
        return _workload(listed["items"][0], listed["metadata"]["resourceVersion"])

    async def watch(self, target: Target, version: str) -> AsyncGenerator[Workload]:
        """What it becomes after a version, until the server ends the watch. Gone if that is too long ago."""
        how = {"watch": True, "resource_version": version, "timeout_seconds": WATCH_S}
        response = await self._call("watch", lambda: self._open(target, WATCH_S + self._timeout_s, **how))
        try:
            while line := await response.content.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _failure(event["object"].get("code", 0), event["object"].get("message", "watch failed"))
                if event["type"] == "DELETED":
                    raise ApiFailed(f"{target.kind} {target.name} was deleted", 404)
                yield _workload(event["object"], event["object"]["metadata"]["resourceVersion"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiFailed(f"watch broke: {error}") from error
        finally:
            response.close()

    async def scale(self, target: Target, pods: int) -> None:
        """Set the number of pods. Conflict if another client did meanwhile."""
        read = getattr(self._apps, f"read_namespaced_{_kind(target)}_scale")
        replace = getattr(self._apps, f"replace_namespaced_{_kind(target)}_scale")
        scale = await self._call("get scale", lambda: read(target.name, self._namespace))
        if scale.spec.replicas != pods:
            scale.spec.replicas = pods
            put = lambda: replace(target.name, self._namespace, scale, field_manager=FIELD_MANAGER)  # noqa: E731
            await self._call("put scale", put)

    async def read_lease(self, name: str) -> Any:
        """The V1Lease of that name, or None."""
        try:
            return await self._call(
                "get lease", lambda: self._coordination.read_namespaced_lease(name, self._namespace)
            )
        except ApiFailed as failed:
            if failed.status != 404:
                raise
            return None

    async def write_lease(self, name: str, lease: Any) -> None:
        """Create a V1Lease, or replace the version that was read. Conflict if another client was faster."""
        api, namespace = self._coordination, self._namespace
        if lease.metadata is None:
            lease.metadata = client.V1ObjectMeta(name=name)
            await self._call("create lease", lambda: api.create_namespaced_lease(namespace, lease))
        else:
            await self._call("put lease", lambda: api.replace_namespaced_lease(name, namespace, lease))

    async def _open(self, target: Target, timeout_s: float, **how: Any) -> aiohttp.ClientResponse:
        """The answer to a list of one workload, whose body is read as plain JSON: it is all that is needed."""
        call = getattr(self._apps, f"list_namespaced_{_kind(target)}_without_preload_content")
        only = f"metadata.name={target.name}"
        response: aiohttp.ClientResponse = await call(
            self._namespace, field_selector=only, _request_timeout=float(timeout_s), **how
        )
        if response.status >= 400:
            raise client.ApiException(http_resp=RESTResponse(response))
        return response

    async def _call(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """The answer. A server that asks for a pause (429) gets it, within the time limit."""
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await on_retry_after_error(retry_after_backoff(), is_retry_after_response, make)
        except client.ApiException as error:
            raise _failure(error.status, f"{name}: {error.status} {error.reason}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiFailed(f"{name}: {error or f'no answer within {self._timeout_s:g} s'}") from error
        finally:
            API_SECONDS.labels(name).set(time.monotonic() - started_s)


def _kind(target: Target) -> str:
    return {"statefulset": "stateful_set", "deployment": "deployment"}[target.kind]


def _workload(found: dict[str, Any], version: str) -> Workload:
    pods, ready = found["spec"].get("replicas"), found.get("status", {}).get("readyReplicas")
    return Workload(1 if pods is None else pods, ready or 0, version)


def _failure(status: int, message: str) -> ApiFailed:
    return {409: Conflict, 410: Gone}.get(status, ApiFailed)(message, status)
