"""The description of a process as data: its command, its check of readiness, its stage at a stop."""

import http.client
import socket
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2

PROBE_TIMEOUT_S = 2.0


class StopStage(IntEnum):
    """The order in which a cluster is stopped: processes that accept work first, those that others need last."""

    GATEWAY = 0
    ENGINE = 1
    HELPER = 2
    STORE = 3


class ReadyCheck(Protocol):
    """Checks whether a process serves. Blocks for at most PROBE_TIMEOUT_S; called in a thread."""

    def __call__(self) -> bool: ...


@dataclass(frozen=True)
class ProcessSpec:
    """One process. `env` is added to the environment that all processes of the cluster share.

    name     unique in the cluster, and short because it is the name of a socket and precedes every log line
    address  address of the service, for users; the supervisor only calls `ready`
    grace_s  from SIGTERM to SIGKILL
    role     the scaled role of a process that runs on demand, with its number of the replica; empty: always runs
    """

    name: str
    argv: tuple[str, ...]
    ready: ReadyCheck
    env: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    stop_stage: StopStage = StopStage.HELPER
    grace_s: float = 10.0
    role: str = ""
    replica: int = 0


@dataclass(frozen=True)
class GrpcReady:
    """Ready if the standard health service answers SERVING for the whole server."""

    address: str

    def __call__(self) -> bool:
        # For most of a start there is no socket, and a channel would take 1 ms of cores that are busy with the start.
        socket_path = self.address.removeprefix("unix:")
        if socket_path != self.address and not Path(socket_path).exists():
            return False
        # The blocking interface, because grpc.aio cannot be used from two event loops of one process.
        with grpc.insecure_channel(self.address) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            try:
                answer = check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass(frozen=True)
class HttpReady:
    """Ready if a GET of this URL answers 200, without a proxy.

    health_id  the expected x-moonshard-id of the answer, which distinguishes another server on the same port
    """

    url: str
    health_id: str = ""

    def __call__(self) -> bool:
        url = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=PROBE_TIMEOUT_S)
        try:
            connection.request("GET", url.path)
            answer = connection.getresponse()
            return answer.status == 200 and answer.getheader("x-moonshard-id", "") == self.health_id
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class RedisReady:
    """Ready if PING on this Unix socket answers PONG, which Redis does not while it loads a data set."""

    path: str

    def __call__(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PROBE_TIMEOUT_S)
                connection.connect(self.path)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
