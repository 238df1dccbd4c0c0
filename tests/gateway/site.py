"""A whole site in one event loop: scripted engines, the real tokenizer service, the real gateway, a real socket."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from typing import Any, Self

import grpc.aio
import httpx
import openai
from starlette.applications import Starlette

from gateway.__main__ import listen_on
from gateway.app import create_app
from gateway.http.server import HttpServer
from gateway.http.stopping import Stopping
from gateway.settings import GatewaySettings
from protos.attention_pb2 import Sampling
from protos.tokenizer_pb2_grpc import add_TokenizerServiceServicer_to_server
from services.runtime.server import start_server
from services.tokenizer.long_work import LongWork
from services.tokenizer.service import TokenizerServicer
from services.tokenizer.vocabulary import Vocabulary
from tests.gateway.engine import Engine

MODEL = "kimi-k2.6"
CONTEXT_TOKENS = 2048
HELLO = "Let me see.</think>Hello, wörld! 👋<|im_end|>"


class Tokenizer:
    """One tokenizer replica, in this process."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._work = LongWork(1, 16, 1 << 28)
        self._servicer = TokenizerServicer(vocabulary, self._work, 2**24, 2**20)
        self._server: grpc.aio.Server | None = None
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        """Serves, after a stop again under the same address."""
        self._server, self.address = await start_server(
            lambda server: add_TokenizerServiceServicer_to_server(self._servicer, server), self.address
        )

    @property
    def is_up(self) -> bool:
        return self._server is not None

    async def stop(self) -> None:
        """Gone at once: streams break."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    def close(self) -> None:
        """Ends its threads."""
        self._work.close()


class Site:
    """What a test needs to talk to a gateway and to break what stands behind it. Use as a context manager.

    answer         text that every engine says, markers included; or set `script`
    decode_places  where the gateway looks for decode replicas, instead of being told; then they aren't waited for
    settings       of the gateway, on top of short waits
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        prefills: int = 1,
        decodes: int = 1,
        tokenizers: int = 1,
        answer: str = HELLO,
        decode_places: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.vocabulary = vocabulary
        self.answer_ids = vocabulary.encode_with_special(answer)
        self.prefills = [Engine("prefill", self._script) for _ in range(prefills)]
        self.decodes = [Engine("decode", self._script) for _ in range(decodes)]
        self.tokenizers = [Tokenizer(vocabulary) for _ in range(tokenizers)]
        self._decode_places = tuple(decode_places)
        self._settings = settings

    def say(self, answer: str) -> None:
        """From now on the engines say this."""
        self.answer_ids = self.vocabulary.encode_with_special(answer)

    def _script(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[int]:
        return self.answer_ids

    @property
    def engines(self) -> list[Engine]:
        return [*self.prefills, *self.decodes]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for part in (*self.engines, *self.tokenizers):
                await part.start()
                stack.push_async_callback(part.stop)
            for tokenizer in self.tokenizers:
                stack.enter_context(closing(tokenizer))
            await self._start_gateway(stack)
            self.http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=self.url, timeout=20, trust_env=False)
            )
            self.openai = await stack.enter_async_context(
                openai.AsyncOpenAI(
                    base_url=f"{self.url}/v1",
                    api_key="none",
                    max_retries=0,
                    timeout=20,
                    http_client=httpx.AsyncClient(trust_env=False),
                )
            )
            if not self._decode_places:
                await self.ready()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def ready(self) -> None:
        """Waits until the gateway sees every replica that is up."""
        async with asyncio.timeout(10):
            while (await self.http.get("/health")).status_code != 200:
                await asyncio.sleep(0.01)
            await self.sees("prefill", sum(engine.is_up for engine in self.prefills))
            await self.sees("decode", sum(engine.is_up for engine in self.decodes))
            await self.sees("tokenizer", sum(tokenizer.is_up for tokenizer in self.tokenizers))

    @property
    def context_tokens(self) -> int:
        return CONTEXT_TOKENS

    async def reports_of_load(self) -> None:
        """Waits until the gateway has what the engines say of their load now."""
        pools = ((self.gateway.cluster.prefills, self.prefills), (self.gateway.cluster.decodes, self.decodes))
        async with asyncio.timeout(10):
            for pool, engines in pools:
                up = {engine.address: engine.load for engine in engines if engine.is_up}
                while {replica.address: replica.load for replica in pool.serving} != up:
                    await asyncio.sleep(0.005)

    async def sees(self, role: str, num_replicas: int) -> None:
        """Waits until the gateway counts so many ready replicas."""
        pool = getattr(self.gateway.cluster, f"{role}s")
        async with asyncio.timeout(10):
            while len(pool.serving) != num_replicas:
                await asyncio.sleep(0.005)

    async def _start_gateway(self, stack: AsyncExitStack) -> None:
        settings = GatewaySettings(
            **{
                "listen": "127.0.0.1:0",
                "tokenizers": tuple(tokenizer.address for tokenizer in self.tokenizers),
                "prefills": tuple(engine.address for engine in self.prefills),
                "decodes": self._decode_places or tuple(engine.address for engine in self.decodes),
                "prefill_min_tokens": 0,
                "hold_s": 0.3,
                "restart_s": self._settings.get("hold_s", 0.3),
                "load_poll_s": 0.02,
                "drain_s": 1.0,
                **self._settings,
            }
        )
        listener = stack.enter_context(listen_on(settings.listen))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        stopping = Stopping()
        app = create_app(settings, stopping)
        server = HttpServer(app, settings, stopping)
        # As `server.serve` does, without its loop, which looks for a signal ten times a second.
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[listener])
        stack.push_async_callback(server.shutdown)
        inner: Any = app
        while not isinstance(inner, Starlette):
            inner = inner.app
        self.gateway = inner.state.gateway

    async def chat(self, **fields: Any) -> httpx.Response:
        """One request that isn't streamed, unless the fields say so."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)
