"""`python -m services.autoscaler` as a process: its probes, and what SIGTERM does to its Lease."""

import asyncio
import json
import os
import signal
import sys

import httpx
import pytest

from tests.services.autoscaler.api_server import NAMESPACE, ApiServer
from tests.services.autoscaler.gateway import Gateway

pytestmark = pytest.mark.slow

START_S = 120


async def test_sigterm_gives_the_lease_back():
    async with ApiServer() as api, Gateway() as gateway:
        await api.add("statefulsets", "decode", 1)
        api.ready_s = 2.0
        gateway.say(decode=1)
        given = {
            "LISTEN": "127.0.0.1:0",
            "PROBE_LISTEN": "127.0.0.1:0",
            "MODE": "builtin",
            "GATEWAYS": gateway.address,
            "ROLES": '{"decode": {"workload": "statefulset/decode", "shards": 2, "min": 1}}',
            "LEASE_S": "1",
            "NAMESPACE": NAMESPACE,
            "LEASE": "moonshard-autoscaler",
            "INSTANCE": "autoscaler-0",
            "API_SERVER": api.url,
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MOONSHARD_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.autoscaler"),
            env=environment | {f"MOONSHARD_{name}": value for name, value in given.items()},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(START_S):
                while (line := json.loads(await process.stderr.readline()))["msg"] != "probes":
                    pass
                async with httpx.AsyncClient(base_url=f"http://{line['address']}", trust_env=False) as http:
                    while api.replicas("statefulsets/decode") < 2:
                        await asyncio.sleep(0.05)
                    assert (await http.get("/health")).status_code == 503, "one shard of two is ready"
                    while (await http.get("/health")).status_code == 503:
                        await asyncio.sleep(0.05)
                    answers = [await http.get(path) for path in ("/health", "/live", "/")]
                assert [answer.status_code for answer in answers] == [200, 200, 404]
                assert api.lease("moonshard-autoscaler")["holderIdentity"] == "autoscaler-0"
                process.send_signal(signal.SIGTERM)
                _, log = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        assert process.returncode == 0, log
        assert not api.lease("moonshard-autoscaler")["holderIdentity"]
        assert b"Traceback" not in log
