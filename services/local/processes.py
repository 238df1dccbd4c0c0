"""What a process of the cluster is, as data: how it starts, how one sees that it serves, when it stops."""

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
    """The order in which a cluster is stopped: who takes work from outside goes first, who is needed by others last."""

    GATEWAY = 0
    ENGINE = 1
    HELPER = 2
    STORE = 3


class ReadyCheck(Protocol):
    """Asks a process whether it serves. Blocking, at most PROBE_TIMEOUT_S; called in a thread."""

    def __call__(self) -> bool: ...


@dataclass(frozen=True)
class ProcessSpec:
    """One process. `env` is added to the environment that all processes of the cluster share.

    name     unique in the cluster and short, since it names the socket and stands before every log line
    address  where it serves, for people: the supervisor itself only uses `ready`
    grace_s  from SIGTERM to SIGKILL
    role     that is scaled, where the process runs on demand only; replica: which of it this belongs to
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
    """Ready when the standard health service answers SERVING for the whole server."""

    address: str

    def __call__(self) -> bool:
        # Most of a start is spent before there is a socket, and a channel costs 1 ms on cores that are busy with that.
        socket_path = self.address.removeprefix("unix:")
        if socket_path != self.address and not Path(socket_path).exists():
            return False
        # The blocking interface, since grpc.aio cannot share a process with another event loop's grpc.aio.
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
    """Ready when a GET of this URL answers 200, without a proxy.

    health_id  the answer's x-moonshard-id: another server on the same port is not ours
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
    """Ready when PING on this Unix socket answers PONG, so not while a data set is loading."""

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
