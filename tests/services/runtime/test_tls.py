"""Mutual TLS: accepted and refused peers, their errors, and certificates that change while streams run."""

import asyncio
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from services.runtime import tls as tls_module
from services.runtime.channels import open_channel, wait_ready, watch_health
from services.runtime.errors import Unavailable
from services.runtime.server import start_server
from tests.services.runtime.certificates import Authority
from tests.services.runtime.probe import KINDS, SERVICE, Probe, converse


@pytest.fixture
def authority():
    return Authority()


@pytest.fixture
def files(authority, tmp_path):
    return authority.write(tmp_path / "ours")


@asynccontextmanager
async def serving(tls):
    server, address = await start_server(Probe().add_to, tls=tls)
    try:
        yield address
    finally:
        await server.stop(None)


@pytest.mark.parametrize("kind", KINDS)
async def test_those_who_know_each_other_talk(files, kind):
    async with serving(files) as address, open_channel(address, tls=files) as channel:
        await wait_ready(channel, 10)
        assert await converse(channel, kind, b"once", timeout=10) == b"once"


async def test_without_a_name_the_host_must_be_in_the_certificate(files):
    async with serving(files) as address:
        async with open_channel(address, tls=replace(files, name="")) as channel:
            assert await converse(channel, "unary_unary", b"hello", timeout=10) == b"hello"
        async with open_channel(address.replace("127.0.0.1", "localhost"), tls=replace(files, name="")) as channel:
            with pytest.raises(Unavailable, match="Hostname Verification Check failed"):
                await converse(channel, "unary_unary", b"hello", timeout=10)


def of_another_authority(authority, folder):
    return Authority().write(folder)


def trusting_another_authority(authority, folder):
    return replace(authority.write(folder), ca=Authority().write(folder / "other").ca)


def expired(authority, folder):
    return authority.write(folder, expired=True)


@pytest.mark.parametrize(
    "make, hears",
    [
        pytest.param(of_another_authority, "certificate|CERTIFICATE", id="other-authority"),
        pytest.param(trusting_another_authority, "CERTIFICATE_VERIFY_FAILED|SIGNATURE", id="server-not-trusted"),
        pytest.param(expired, "does not accept our certificate", id="expired"),
        pytest.param(lambda *_: None, "a peer with TLS ends so", id="no-tls"),
    ],
)
async def test_a_caller_is_refused_and_told_why(authority, files, tmp_path, make, hears):
    async with serving(files) as address, open_channel(address, tls=make(authority, tmp_path / "theirs")) as channel:
        with pytest.raises(Unavailable, match=hears):
            await converse(channel, "unary_unary", b"hello", timeout=10)


@pytest.mark.parametrize(
    "how, hears",
    [
        pytest.param({"name": "other"}, "Hostname Verification Check failed", id="another-name"),
        pytest.param({"expired": True}, "certificate has expired|CERTIFICATE_VERIFY_FAILED", id="expired"),
    ],
)
async def test_a_server_is_refused(authority, files, tmp_path, how, hears):
    theirs = authority.write(tmp_path / "theirs", **how)
    async with serving(theirs) as address, open_channel(address, tls=files) as channel:
        with pytest.raises(Unavailable, match=hears):
            await converse(channel, "unary_unary", b"hello", timeout=10)


async def test_a_caller_without_a_certificate_of_its_own_is_refused(files):
    async with serving(files) as address:
        trusting = grpc.ssl_channel_credentials(files.ca.read_bytes())
        async with grpc.aio.secure_channel(address, trusting, files.channel_options()) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await converse(channel, "unary_unary", b"hello", timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_certificates_change_under_open_streams(files, tmp_path, monkeypatch):
    monkeypatch.setattr(tls_module, "CHECK_S", 0.0)
    folder = tmp_path / "ours"
    async with serving(files) as address, open_channel(address, tls=files) as channel:
        streams = []
        for generation in range(3):
            stream = channel.stream_stream(f"/{SERVICE}/stream_stream")(timeout=60)
            streams.append(stream)
            # Every stream continues on the connection on which it began.
            for old in streams:
                await old.write(b"%d" % generation)
                assert await old.read() == b"%d" % generation
            before = files.ca.read_bytes()
            # A new authority, which would refuse a peer with the old certificates.
            Authority().write(folder)
            assert files.ca.read_bytes() != before
        for stream in streams:
            await stream.done_writing()


async def test_a_watcher_of_health_goes_on_with_new_certificates(files, tmp_path, monkeypatch):
    monkeypatch.setattr(tls_module, "CHECK_S", 0.0)
    server, address = await start_server(Probe().add_to, tls=files)
    async with open_channel(address, tls=files) as channel, aclosing(watch_health(channel)) as health:
        assert await anext(health)
        await server.stop(None)
        assert not await anext(health)
        Authority().write(tmp_path / "ours")
        server, _ = await start_server(Probe().add_to, address, tls=files)
        async with asyncio.timeout(30):
            assert await anext(health)
    await server.stop(None)


async def test_files_that_are_not_there_are_named(files, tmp_path):
    gone = replace(files, key=tmp_path / "none.key")
    with pytest.raises(Unavailable, match=r"MOONSHARD_TLS_KEY: cannot read .*none\.key: No such file"):
        open_channel("127.0.0.1:1", tls=gone)
    with pytest.raises(Unavailable, match="MOONSHARD_TLS_KEY"):
        await start_server(Probe().add_to, tls=gone)


async def test_a_process_serves_tls_and_its_probes_do_not(files, start_probe):
    process = start_probe(
        listen="127.0.0.1:0",
        health_listen="127.0.0.1:0",
        tls_cert=str(files.cert),
        tls_key=str(files.key),
        tls_ca=str(files.ca),
    )
    listening = await process.line("listening")
    await process.line("ready")
    async with open_channel(listening["address"], tls=files) as channel:
        assert await converse(channel, "unary_unary", b"hello", timeout=10) == b"hello"
    async with open_channel(listening["health_address"]) as channel:
        await wait_ready(channel, 10)
        with pytest.raises(Exception, match="Method not found"):
            await converse(channel, "unary_unary", b"hello", timeout=10)
    async with open_channel(listening["address"]) as channel:
        with pytest.raises(Unavailable):
            await converse(channel, "unary_unary", b"hello", timeout=10)


async def test_half_of_the_files_is_a_mistake(start_probe):
    code, log = await start_probe(tls_cert="/etc/tls.crt", listen="127.0.0.1:0").end()
    assert code == 2
    assert log[-1] == "TLS needs MOONSHARD_TLS_CERT, _KEY and _CA, not set: MOONSHARD_TLS_KEY, MOONSHARD_TLS_CA"
