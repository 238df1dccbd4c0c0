"""Secrets of a release: filled once, renewed in time, and good for the processes that mount them."""

import base64
import datetime
import ssl
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from services.autoscaler import kubernetes_api
from services.autoscaler.certificates import CERTIFICATE_DAYS, RENEW_DAYS
from services.autoscaler.kubernetes_api import ApiFailed, KubernetesApi
from services.autoscaler.secret_maker import SecretMakerSettings, fill, main
from services.runtime.blob_seal import open_sealer
from services.runtime.channels import open_channel, wait_ready
from services.runtime.errors import Unavailable
from services.runtime.server import start_server
from services.runtime.tls import TlsFiles
from tests.services.runtime.certificates import Authority
from tests.services.runtime.probe import Probe, converse

NOW = datetime.datetime.now(datetime.UTC)
NAMES = {"authority_secret": "m-authority", "tls_secret": "m-tls", "store_secret": "m-store"}


class SecretServer:
    """The part of the Kubernetes API that holds secrets; those of a release are there and empty."""

    def __init__(self) -> None:
        self.data: dict[str, dict[str, str]] = {name: {} for name in NAMES.values()}
        self.writes: list[str] = []

    async def get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.data:
            return web.json_response({"kind": "Status", "code": 404, "message": "not found"}, status=404)
        return web.json_response({"metadata": {"name": name}, "data": self.data[name] or None})

    async def patch(self, request: web.Request) -> web.Response:
        assert request.content_type.endswith("patch+json")
        self.writes.append(request.match_info["name"])
        self.data[request.match_info["name"]] |= (await request.json())["data"]
        return await self.get(request)

    def files(self, name, folder):
        folder.mkdir(exist_ok=True)
        for key, value in self.data[name].items():
            (folder / key).write_bytes(base64.b64decode(value))
        return TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt", "moonshard")


@asynccontextmanager
async def serving():
    server = SecretServer()
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/ai/secrets/{name}", server.get)
    app.router.add_patch("/api/v1/namespaces/ai/secrets/{name}", server.patch)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def run_at(url, now):
    api = KubernetesApi("ai", url, 10)
    try:
        await fill(api, SecretMakerSettings(namespace="ai", **NAMES), now)
    finally:
        await api.close()


async def test_a_second_run_changes_nothing():
    async with serving() as (server, url):
        settings = SecretMakerSettings(namespace="ai", api_server=url, **NAMES)
        await main(settings)
        assert server.writes == ["m-authority", "m-tls", "m-store"]
        await main(settings)
        assert len(server.writes) == 3


async def test_processes_trust_each_other_by_what_was_made(tmp_path):
    async with serving() as (server, url):
        await run_at(url, NOW)
        files = server.files("m-tls", tmp_path / "tls")
        serving_it, address = await start_server(Probe().add_to, tls=files)
        async with open_channel(address, tls=files) as channel:
            await wait_ready(channel, 10)
            assert await converse(channel, "unary_unary", b"hello", timeout=10) == b"hello"
        await serving_it.stop(None)
        server.files("m-store", tmp_path / "store")
        assert len((tmp_path / "store" / "password").read_text()) == 48
        open_sealer(tmp_path / "store" / "mac")


async def test_a_renewed_certificate_and_the_one_before_trust_each_other(tmp_path):
    """Pods see the new files minutes apart."""
    async with serving() as (server, url):
        await run_at(url, NOW)
        before = server.files("m-tls", tmp_path / "before")
        await run_at(url, NOW + datetime.timedelta(days=CERTIFICATE_DAYS - RENEW_DAYS - 1))
        assert server.writes.count("m-tls") == 1
        await run_at(url, NOW - datetime.timedelta(days=1) + datetime.timedelta(days=CERTIFICATE_DAYS - RENEW_DAYS + 2))
        assert server.writes == ["m-authority", "m-tls", "m-store", "m-tls"]
        assert server.files("m-tls", tmp_path / "after").cert.read_bytes() != before.cert.read_bytes()
        assert (tmp_path / "after" / "ca.crt").read_bytes() == before.ca.read_bytes()


async def test_another_name_or_a_damaged_certificate_is_made_anew():
    async with serving() as (server, url):
        await run_at(url, NOW)
        server.data["m-tls"]["tls.crt"] = base64.b64encode(b"damaged").decode()
        await main(SecretMakerSettings(namespace="ai", api_server=url, **NAMES))
        assert server.writes[3:] == ["m-tls"]
        await main(SecretMakerSettings(namespace="ai", api_server=url, tls_name="other", **NAMES))
        assert server.writes[4:] == ["m-tls"]


async def test_a_password_that_is_there_stays():
    async with serving() as (server, url):
        server.data["m-store"]["password"] = base64.b64encode(b"mine").decode()
        await run_at(url, NOW)
        assert base64.b64decode(server.data["m-store"]["password"]) == b"mine"
        assert len(base64.b64decode(server.data["m-store"]["mac"])) >= 16


async def test_a_release_without_the_secret_is_an_error():
    async with serving() as (_, url):
        with pytest.raises(ApiFailed, match="get secret: 404"):
            await main(SecretMakerSettings(namespace="ai", api_server=url, store_secret="absent"))


async def test_a_pod_shows_its_token_as_it_is_now_and_trusts_the_clusters_authority(tmp_path, monkeypatch):
    """The way into the cluster: address from the environment, authority and token from the mounted account."""
    files = Authority().write(tmp_path)
    tokens = []

    async def get(request: web.Request) -> web.Response:
        tokens.append(request.headers["Authorization"])
        return web.json_response({"metadata": {"name": "a"}})

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.cert, files.key)
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/ai/secrets/a", get)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    monkeypatch.setattr(kubernetes_api, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(runner.addresses[0][1]))
    api = KubernetesApi("ai", "", 10)
    try:
        for token in ("first", "second"):
            (tmp_path / "token").write_text(f"{token}\n")
            assert await api.read_secret("a") == {}
    finally:
        await api.close()
        await runner.cleanup()
    assert tokens == ["Bearer first", "Bearer second"]


def test_outside_of_a_cluster_the_missing_setting_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(kubernetes_api, "SERVICE_ACCOUNT", tmp_path)
    with pytest.raises(Unavailable, match="MOONSHARD_API_SERVER is not set, and this is no pod"):
        KubernetesApi("ai", "", 10)
