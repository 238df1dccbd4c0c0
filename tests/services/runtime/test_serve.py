"""The life of a service's process: start, health, draining, exit."""

import asyncio
import json
import signal
import socket
import urllib.request
from contextlib import aclosing, suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.runtime.channels import open_channel, wait_ready, watch_health
from services.runtime.errors import NotFound, Unavailable
from services.runtime.server import start_server
from tests.services.runtime.probe import SERVICE, Probe, converse

WAIT_S = 20.0
stop_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


@stop_signals
@pytest.mark.slow
async def test_a_signal_lets_calls_finish_and_exits_with_0(start_probe, number):
    process = start_probe()
    address = (await process.line("listening"))["address"]
    async with open_channel(address) as channel:
        await wait_ready(channel, WAIT_S)
        async with aclosing(watch_health(channel)) as health:
            assert await anext(health)
            caller = asyncio.create_task(converse(channel, "unary_unary", b"until-drain"))
            await asyncio.sleep(0.2)
            process.send(number)
            assert not await asyncio.wait_for(anext(health), WAIT_S)
            assert await asyncio.wait_for(caller, WAIT_S) == b"until-drain"
        assert (await process.end())[0] == 0
        with pytest.raises(Unavailable):
            await converse(channel, "unary_unary", b"")


@pytest.mark.slow
@pytest.mark.parametrize("probe, message", [("", b"sleep"), ("drain-hangs", b"")], ids=["call", "hook"])
async def test_draining_has_a_deadline(start_probe, probe, message):
    process = start_probe(drain_s="0.5", probe=probe)
    async with open_channel((await process.line("listening"))["address"]) as channel:
        await wait_ready(channel, WAIT_S)
        caller = asyncio.create_task(converse(channel, "unary_stream", message or b"once"))
        await asyncio.sleep(0.2)
        process.send(signal.SIGTERM)
        (ended,) = await asyncio.gather(caller, return_exceptions=True)
        assert ended == b"once" if probe else isinstance(ended, Unavailable)
    assert (await asyncio.wait_for(process.end(), 5))[0] == 0


async def test_a_watcher_does_not_delay_the_end(start_probe):
    process = start_probe(drain_s="15")
    address = (await process.line("listening"))["address"]
    async with open_channel(address) as channel, aclosing(watch_health(channel)) as health:
        assert await anext(health)
        process.send(signal.SIGTERM)
        assert (await asyncio.wait_for(process.end(), 5))[0] == 0


@pytest.mark.slow
async def test_a_process_that_cannot_serve_for_a_while(start_probe):
    process = start_probe(probe="moody")
    await process.line("not ready")
    async with open_channel(process.address) as channel, aclosing(watch_health(channel)) as health:
        assert not await asyncio.wait_for(anext(health), WAIT_S)
        assert await converse(channel, "unary_unary", b"cheer-up") == b"cheer-up"
        assert await asyncio.wait_for(anext(health), WAIT_S)
        process.send(signal.SIGTERM)
        assert not await asyncio.wait_for(anext(health), WAIT_S)
        assert (await process.end())[0] == 0
        await asyncio.sleep(0.3)
        assert not [line async for line in _until_quiet(health)]


async def _until_quiet(health):
    """Return what a watcher reports until it is quiet for a moment."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            async for serving in health:
                yield serving


async def test_a_signal_while_getting_ready_ends_the_process(start_probe):
    process = start_probe(probe="ready-hangs")
    async with open_channel((await process.line("listening"))["address"]) as channel:
        with pytest.raises(Unavailable, match="does not serve"):
            await wait_ready(channel, 0.3)
    process.send(signal.SIGTERM)
    assert (await asyncio.wait_for(process.end(), 5))[0] == 0


@pytest.mark.parametrize(
    "probe, error",
    [
        pytest.param("ready-fails", "the weights are gone", id="an-error-of-ours-is-one-line"),
        pytest.param("engine-dies", "uncaught KeyError", id="a-defect-has-a-stack"),
    ],
)
async def test_what_fails_beside_the_server_ends_the_process(start_probe, probe, error):
    process = start_probe(probe=probe, drain_s="0.5")
    await process.line("listening")
    code, log = await asyncio.wait_for(process.end(), WAIT_S)
    last = json.loads(log[-1])
    assert code == 1
    assert (last["level"], last["msg"]) == ("critical", error)
    assert ("stack" in last) == (probe == "engine-dies")


@pytest.mark.slow
async def test_a_socket_that_a_dead_process_left_is_taken_over(start_probe, socket_folder):
    first = start_probe()
    await first.line("ready")
    first.send(signal.SIGKILL)
    await first.end()
    assert (socket_folder / "probe.sock").is_socket()
    second = start_probe()
    await second.line("ready")
    third = start_probe()
    code, log = await third.end()
    assert code == 1
    assert any("another process listens there" in line for line in log)
    async with open_channel(f"unix:{socket_folder}/probe.sock") as channel:
        assert await converse(channel, "unary_unary", b"still here", timeout=WAIT_S) == b"still here"


async def test_a_port_that_is_taken_is_refused(start_probe):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        code, log = await start_probe(listen=address).end()
        assert code == 1
        assert any(f"cannot listen on {address}" in line for line in log)
        code, log = await start_probe(metrics_listen=address).end()
        assert code == 1
        assert any(f"cannot serve metrics on {address}" in line for line in log)


async def test_a_file_in_the_way_is_left_alone(socket_folder):
    path = socket_folder / "p.sock"
    path.write_text("mine")
    with pytest.raises(Unavailable, match="is no socket"):
        await start_server(Probe().add_to, f"unix:{path}")
    assert path.read_text() == "mine"


async def test_the_folder_of_a_socket_is_private(socket_folder):
    server, _ = await start_server(Probe().add_to, f"unix:{socket_folder}/run/p.sock")
    assert (socket_folder / "run").stat().st_mode & 0o777 == 0o700
    await server.stop(None)
    assert not (socket_folder / "run" / "p.sock").exists()


async def test_metrics_are_served(start_probe):
    process = start_probe(metrics_listen="127.0.0.1:0", listen="127.0.0.1:0")
    metrics = await process.line("metrics")
    listening = await process.line("listening")
    async with open_channel(listening["address"]) as channel:
        await converse(channel, "unary_unary", b"")

    def read() -> str:
        with urllib.request.urlopen(f"http://{metrics['address']}/metrics", timeout=5) as answer:
            return answer.read().decode()

    assert f'moonshard_rpc_seconds_count{{code="OK",method="/{SERVICE}/unary_unary"}} 1.0' in await asyncio.to_thread(
        read
    )


async def test_health_names_the_services():
    server, address = await start_server(Probe().add_to)
    async with open_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(NotFound):
            await health.Check(health_pb2.HealthCheckRequest(service="other"))
        watch = health.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
    await server.stop(None)


async def test_reflection_lists_the_services():
    server, address = await start_server(Probe().add_to)
    async with open_channel(address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await call.read()).list_services_response.service}
        call.cancel()
    await server.stop(None)
    assert {SERVICE, "grpc.health.v1.Health"} <= listed


async def test_health_of_a_peer_that_dies_and_returns(start_probe):
    first = start_probe()
    address = (await first.line("listening"))["address"]
    async with open_channel(address) as channel, aclosing(watch_health(channel)) as health:
        assert await asyncio.wait_for(anext(health), WAIT_S)
        first.send(signal.SIGKILL)
        assert not await asyncio.wait_for(anext(health), 2)
        await first.end()
        second = start_probe()
        await second.line("ready")
        started = asyncio.get_running_loop().time()
        assert await asyncio.wait_for(anext(health), WAIT_S)
        assert asyncio.get_running_loop().time() - started < 5
        assert await converse(channel, "unary_unary", b"again") == b"again"


@pytest.mark.slow
async def test_health_of_a_peer_that_hangs(start_probe):
    process = start_probe()
    address = (await process.line("listening"))["address"]
    options = {"grpc__keepalive_time_ms": 500, "grpc__http2__ping_timeout_ms": 1000}
    async with open_channel(address, **options) as channel, aclosing(watch_health(channel)) as health:
        assert await asyncio.wait_for(anext(health), WAIT_S)
        process.send(signal.SIGSTOP)
        assert not await asyncio.wait_for(anext(health), 10)
        process.send(signal.SIGCONT)
        assert await asyncio.wait_for(anext(health), WAIT_S)


async def test_health_of_nobody(socket_folder):
    async with open_channel(f"unix:{socket_folder}/none.sock") as channel:
        async with aclosing(watch_health(channel)) as health:
            assert not await asyncio.wait_for(anext(health), 5)
        assert channel.get_state() != grpc.ChannelConnectivity.READY
