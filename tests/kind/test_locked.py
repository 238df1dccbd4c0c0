"""An installed release that is locked, and hurt at its entrance: TLS, gateways killed by force, keys and limits.

Runs after test_installed.py, whose clients have no key.
"""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.kind.installed import Installed

pytestmark = pytest.mark.timeout(1800)

KEYS = {"ada": "sk-ada", "bob": "sk-bob", "smoke": "sk-smoke"}
LIMIT = 5
# Answers whether the tokenizer serves a caller: first in plain text, then with the pod's certificate.
CALL_TOKENIZER = """
import asyncio
from pathlib import Path
from services.runtime.channels import open_channel, wait_ready
from services.runtime.tls import TlsFiles

async def serves(tls):
    async with open_channel("moonshard-tokenizer:50051", tls=tls) as channel:
        try:
            await wait_ready(channel, 5)
            return True
        except Exception:
            return False

at = Path("/secrets/tls")
files = TlsFiles(at / "tls.crt", at / "tls.key", at / "ca.crt", "moonshard")
print(asyncio.run(serves(None)), asyncio.run(serves(files)))
"""


@pytest.fixture(scope="module")
def two_gateways(release: Installed) -> Installed:
    """Two gateways, so that one goes on."""
    release.upgrade({"gateway": {"replicas": 2, "maxReplicas": 2}})
    release.wait(lambda: len(release.uids("gateway")) == 2, "two gateways")
    return release


@pytest.fixture(scope="module")
def with_keys(two_gateways: Installed) -> Installed:
    """Keys for two users and the smoke test, a small limit each."""
    release = two_gateways
    digests = "\n".join(f"{hashlib.sha256(key.encode()).hexdigest()} {name}" for name, key in KEYS.items())
    release.add_secret("keys", {"keys": digests})
    release.add_secret("smoke", {"key": KEYS["smoke"]})
    release.upgrade({"gateway": {"keysSecret": "keys", "smokeKeySecret": "smoke", "requestsPerMinute": LIMIT}})
    return release


def ask(release: Installed, key: str | None) -> httpx.Response:
    """A short answer. The API server keeps an Authorization header for itself, so the key goes the other way."""
    body = {"model": release.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    headers = {} if key is None else {"x-api-key": key}
    return release.http.post("/v1/chat/completions", json=body, headers=headers)


def test_processes_call_each_other_with_tls_only(release: Installed):
    """On by default: the Job has made the certificates that every pod waited for."""
    (gateway, *_) = sorted(release.uids("gateway"))
    done = release.run_in(gateway, CALL_TOKENIZER)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_redis_refuses_a_client_without_its_password(release: Installed):
    code = "import socket; s = socket.create_connection(('moonshard-redis-0', 6379), 5); s.sendall(b'PING\\r\\n'); "
    (gateway, *_) = sorted(release.uids("gateway"))
    assert "NOAUTH" in release.run_in(gateway, code + "print(s.recv(99).decode())").stdout


def test_a_gateway_killed_by_force_takes_only_its_own_streams(two_gateways: Installed):
    """Without SIGTERM and grace: its clients see a broken connection, those of the other gateway nothing."""
    release = two_gateways
    victim, other = sorted(release.uids("gateway"))
    began = threading.Barrier(5)

    def stream(pod: str):
        began.wait(60)
        return release.chat("Count.", pod=pod, max_tokens=400, ignore_eos=True)

    with ThreadPoolExecutor(4) as threads:
        streams = {pod: [threads.submit(stream, pod) for _ in range(2)] for pod in (victim, other)}
        began.wait(60)
        release.wait(lambda: release.open_streams() >= 4, "all streams to begin")
        release.kill(victim)
        release.wait(lambda: ask(release, None).status_code == 200, "the Service to forget the dead pod", 30)
        answers = [future.result() for future in streams[other]]
        lost = [future.exception() is not None or not future.result().is_done for future in streams[victim]]
    assert all(answer.is_done and answer.finish_reason == "length" for answer in answers)
    assert all(lost)
    release.wait(lambda: len(release.uids("gateway")) == 2, "another gateway")


def test_without_a_key_nobody_comes_in(with_keys: Installed):
    for key in (None, "sk-wrong"):
        refused = ask(with_keys, key)
        assert refused.status_code == 401, refused.text
        assert refused.headers["www-authenticate"]
    assert ask(with_keys, KEYS["bob"]).status_code == 200
    assert with_keys.http.get("/health").status_code == 200


def test_the_limit_of_a_key_holds_over_all_gateways_and_harms_no_other_key(with_keys: Installed):
    codes = [ask(with_keys, KEYS["ada"]) for _ in range(2 * LIMIT)]
    assert [answer.status_code for answer in codes[:LIMIT]] == [200] * LIMIT
    refused = codes[-1]
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert ask(with_keys, KEYS["bob"]).status_code == 200


def test_helm_test_passes_with_its_own_key(with_keys: Installed):
    assert f"pieces of {with_keys.model}" in with_keys.test()
