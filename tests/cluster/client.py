"""Take one generation through a prefill and a decode replica, as the gateway does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from protos import attention_pb2 as pb
from protos import attention_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc, vision_pb2, vision_pb2_grpc
from protos.media_pb2 import MediaRef, MediaSpan
from services.runtime.channels import open_channel
from tests.cluster.harness import Cluster
from tests.generations import generate

TIMEOUT_S = 120.0


class TokenClient:
    """A client of the replicas of a cluster, in token ids. It belongs to the event loop of one test."""

    def __init__(self, cluster: Cluster) -> None:
        self._channels = {name: open_channel(cluster.address(name)) for name in cluster.names if "redis" not in name}
        self._has_prefill = "prefill-0" in cluster.names

    async def __aenter__(self) -> "TokenClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    def attention(self, name: str) -> Any:
        return attention_pb2_grpc.AttentionServiceStub(self._channels[name])

    async def generate(
        self,
        token_ids: Sequence[int],
        num_tokens: int,
        *,
        decode: str = "decode-0",
        prefill: str = "prefill-0",
        media: Sequence[MediaSpan] = (),
        **how: Any,
    ) -> list[int]:
        """Return all new tokens, the first from a prefill replica if there is one, the others from a decode replica."""
        sampling = pb.Sampling(**{"temperature": 0.0, "top_p": 1.0, "max_new_tokens": num_tokens, **how})
        generated: list[int] = []
        manifest = None
        if self._has_prefill:
            first = await self.prefill(token_ids, sampling, prefill, media=media)
            generated, manifest = [first.token_id], first.manifest
        async for token_id in self.stream(token_ids, generated, sampling, decode, manifest, media=media):
            generated.append(token_id)
        return generated

    async def prefill(
        self,
        token_ids: Sequence[int],
        sampling: pb.Sampling,
        name: str = "prefill-0",
        *,
        media: Sequence[MediaSpan] = (),
    ) -> Any:
        prompt = pb.Prompt(token_ids=token_ids, num_prompt_tokens=len(token_ids), media=media)
        request = pb.PrefillRequest(prompt=prompt, sampling=sampling)
        return await self.attention(name).Prefill(request, timeout=TIMEOUT_S)

    async def stream(
        self,
        token_ids: Sequence[int],
        generated: Sequence[int],
        sampling: pb.Sampling,
        name: str = "decode-0",
        manifest: pb.KvManifest | None = None,
        *,
        media: Sequence[MediaSpan] = (),
    ) -> AsyncIterator[int]:
        """Yield the tokens that follow the generated ones."""
        if len(generated) == sampling.max_new_tokens:
            return
        prompt = pb.Prompt(token_ids=[*token_ids, *generated], num_prompt_tokens=len(token_ids), media=media)
        start = pb.GenerationStart(prompt=prompt, sampling=sampling, manifest=manifest)
        async for response in generate(self.attention(name), start, silence_s=TIMEOUT_S):
            for token_id in response.token_ids:
                yield token_id

    async def encode(self, data: bytes, kind: str = "IMAGE", name: str = "vision-0") -> Any:
        """Return the answer of a vision replica for a file."""
        stub: Any = vision_pb2_grpc.VisionServiceStub(self._channels[name])
        call = stub.Encode(timeout=TIMEOUT_S)
        start = vision_pb2.MediaStart(kind=vision_pb2.MediaKind.Value(kind), num_bytes=len(data))
        await call.write(vision_pb2.EncodeMediaRequest(start=start))
        await call.write(vision_pb2.EncodeMediaRequest(data=data))
        await call.done_writing()
        return await call

    async def render_media(self, parts: Sequence[str | MediaRef]) -> Any:
        """Return token ids and media spans of one user message of texts, images and videos, with thinking off."""
        content = [
            tokenizer_pb2.ContentPart(text=part)
            if isinstance(part, str)
            else tokenizer_pb2.ContentPart(**{"video" if part.chunks else "image": part})
            for part in parts
        ]
        message = tokenizer_pb2.ChatMessage(role="user", content=content)
        request = tokenizer_pb2.RenderRequest(messages=[message], add_generation_prompt=True)
        return await tokenizer_pb2_grpc.TokenizerServiceStub(self._channels["tokenizer-0"]).Render(request)

    async def text_of(self, token_ids: Sequence[int]) -> str:
        """Return the visible text of tokens."""
        request = tokenizer_pb2.DetokenizeRequest(token_ids=token_ids, skip_special=True)
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(self._channels["tokenizer-0"])
        return str((await stub.Detokenize(request)).text)

    async def render(self, messages: Sequence[tuple[str, str]], *, thinking: bool = True) -> list[int]:
        """Return the prompt tokens of (role, text) messages."""
        request = tokenizer_pb2.RenderRequest(
            messages=[
                tokenizer_pb2.ChatMessage(role=role, content=[tokenizer_pb2.ContentPart(text=text)])
                for role, text in messages
            ],
            thinking=thinking,
            add_generation_prompt=True,
        )
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(self._channels["tokenizer-0"])
        return list((await stub.Render(request)).token_ids)

    async def idle(self, num_blocks: int | None = None) -> None:
        """Wait until no replica runs a generation, then assert that every block is free."""
        for name in [name for name in self._channels if name.startswith(("prefill", "decode")) and "shard" not in name]:
            async with asyncio.timeout(TIMEOUT_S):
                while (load := await self.attention(name).GetLoad(pb.GetLoadRequest())).num_running or load.num_waiting:
                    await asyncio.sleep(0.02)
            assert load.num_free_blocks == load.num_blocks, name
