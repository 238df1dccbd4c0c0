"""The tokens of one choice, made by whichever replicas are alive."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

from gateway.cluster.affinity import chain_hashes
from gateway.cluster.choose import choose_decode, choose_prefill
from gateway.cluster.cluster import Cluster
from gateway.cluster.hand_over import HandOver
from gateway.cluster.replicas import Replica
from gateway.http.errors import MediaLost
from gateway.http.request_context import RequestContext
from gateway.metrics import FIRST_DECODE_SECONDS
from gateway.request.batch_queue import BatchQueue
from gateway.settings import GatewaySettings
from protos import attention_pb2 as pb
from protos.media_pb2 import MediaSpan
from services.runtime.errors import DeadlineExceeded, KvMissing, MediaMissing, MoonshardError, Unavailable

T = TypeVar("T")

# Attempts at work that needs features; the store had to lose them just as often.
MAX_SEEN_AGAIN = 3
LOST_RETRY_S = 5.0

FinishReason: TypeAlias = "pb.FinishReason.ValueType"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a generation starts: the rendered prompt with its media, and how to draw."""

    prompt_ids: Sequence[int]
    media: Sequence[MediaSpan]
    sampling: pb.Sampling
    encode_media: Callable[[], Awaitable[object]]  # puts the features of the media back into the store
    priority: int = 0


class Generation:
    """Owns the tokens of one choice, so that any replica can go on after the last one at any time.

    token_ids          generated so far, a final stop token included
    logprobs           of these tokens, if asked for
    prompt_logprobs    of the prompt's tokens but the first, if asked for
    num_cached_tokens  of the prompt, as the first replica reported
    finish_reason      set once the last token is there
    is_cut             a token was replaced because the answer would not have ended within its budget otherwise
    left_out           keywords of its schemas that are not enforced
    prompt_computed    set once the prompt's latent KV is published or the first token is there
    """

    def __init__(
        self, cluster: Cluster, settings: GatewaySettings, context: RequestContext, start: Start, *, leads: bool
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._context = context
        self._start = start
        self._leads = leads  # the client sees nothing before this choice begins
        self.token_ids: list[int] = []
        self.logprobs: list[pb.TokenLogprobs] = []
        self.prompt_logprobs: list[pb.TokenLogprobs] = []
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason = pb.FINISH_REASON_UNSPECIFIED
        self.is_cut = False
        self.left_out: Sequence[str] = ()
        self.prompt_computed = asyncio.Event()
        self._prefilled_s: float | None = None  # when the prefill replica's token came, until the next one has

    async def run(self, shown: BatchQueue[list[int]]) -> None:
        """Generates to the end. What may be shown, all but a final stop token, goes into the feed.

        Raises the MoonshardError that ended it, if the loss of replicas cannot be made good.
        """
        hand_over = HandOver(self._cluster.decodes, choose_decode, self._context, self._settings, begun=self._begun)
        # A prompt is not computed for nobody to go on with.
        with self._context.first_token.timing("queue"):
            await hand_over.next_replica()
        manifest = await self._prefill(shown)
        hand_over.progress(begun=self._begun)
        while self.finish_reason == pb.FINISH_REASON_UNSPECIFIED:
            replica = await hand_over.next_replica()
            num_before = len(self.token_ids)
            try:
                with self._context.span("decode", replica=replica.address) as context:
                    await self._seeing(partial(self._decode_on, replica, manifest, shown, context))
            except KvMissing:
                if manifest is None:
                    raise
                manifest = None
            except MoonshardError as error:
                if len(self.token_ids) > num_before:
                    hand_over.progress(begun=True)
                    manifest = None
                await hand_over.failed(replica, error)

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The tokens of the prompt."""
        return self._start.prompt_ids

    @property
    def num_uncomputed(self) -> int:
        """Tokens of the prompt, until it is computed."""
        return 0 if self.prompt_computed.is_set() else len(self._start.prompt_ids)

    @property
    def _begun(self) -> bool:
        return bool(self.token_ids) or not self._leads

    async def _prefill(self, shown: BatchQueue[list[int]]) -> pb.KvManifest | None:
        """Computes the prompt on a prefill replica; None if the decode replica shall do it itself."""
        pool = self._cluster.prefills
        if len(self._start.prompt_ids) < self._settings.prefill_min_tokens or not pool.serving:
            return None
        if self._start.sampling.HasField("num_prompt_logprobs"):
            # They come with the first token of the replica that computes the prompt and goes on.
            return None
        hashes = chain_hashes(self._start.prompt_ids)
        choose = partial(choose_prefill, cached_tokens=self._cluster.prefixes.cached_tokens(hashes))
        hand_over = HandOver(pool, choose, self._context, self._settings)
        while fitting := [replica for replica in hand_over.untried if self._fits(replica)]:
            replica = choose(fitting)
            try:
                response = await self._seeing(partial(self._prefill_on, replica))
            except MoonshardError as error:
                hand_over.note(replica, error)
                continue
            self._cluster.prefixes.remember(hashes, replica.address)
            if response.HasField("logprobs"):
                self.logprobs.append(response.logprobs)
            self._note(response)
            self._prefilled_s = time.monotonic()
            await self._take([response.token_id], response.finish_reason, response.num_cached_tokens, shown)
            return response.manifest
        if hand_over.overload is not None and self._leads:
            raise hand_over.overload
        return None

    def _fits(self, replica: Replica) -> bool:
        context_tokens = replica.load.context_tokens
        return context_tokens == 0 or len(self._start.prompt_ids) < context_tokens

    async def _prefill_on(self, replica: Replica) -> pb.PrefillResponse:
        replica.note_sent(len(self._start.prompt_ids))
        with self._context.span("prefill", replica=replica.address) as context:
            response: pb.PrefillResponse = await replica.attention.Prefill(
                pb.PrefillRequest(prompt=self._prompt(), sampling=self._start.sampling),
                timeout=context.left_s(self._settings.prefill_s),
                metadata=context.metadata,
            )
        if response.manifest.offer:
            response.manifest.source = replica.address
        return response

    async def _decode_on(
        self, replica: Replica, manifest: pb.KvManifest | None, shown: BatchQueue[list[int]], context: RequestContext
    ) -> None:
        """Reads one replica's stream to its end. Silence and an end without a finish reason count as a loss."""
        if self._was_last():
            return
        replica.note_sent(len(self._start.prompt_ids) + len(self.token_ids))
        stream = replica.attention.Decode(
            pb.DecodeRequest(prompt=self._prompt(), sampling=self._start.sampling, manifest=manifest),
            timeout=context.left_s(self._settings.request_s),
            metadata=context.metadata,
        )
        responses = aiter(stream)
        silence_s = self._settings.prefill_s  # the first message may have to wait for the prompt
        try:
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        response = await anext(responses)
                except TimeoutError as error:
                    raise DeadlineExceeded(f"no token from {replica.address} for {silence_s:g} s") from error
                except StopAsyncIteration:
                    raise Unavailable(f"the stream from {replica.address} ended before the answer") from None
                silence_s = self._settings.stall_s
                self._note(response)
                if self._prefilled_s is not None:
                    FIRST_DECODE_SECONDS.observe(time.monotonic() - self._prefilled_s)
                    self._prefilled_s = None
                self.logprobs += response.logprobs
                self.prompt_logprobs = self.prompt_logprobs or list(response.prompt_logprobs)
                await self._take(list(response.token_ids), response.finish_reason, response.num_cached_tokens, shown)
                if self.finish_reason != pb.FINISH_REASON_UNSPECIFIED:
                    return
        finally:
            stream.cancel()

    def _note(self, response: pb.PrefillResponse | pb.DecodeResponse) -> None:
        self.is_cut |= response.cut
        self.left_out = self.left_out or list(response.schema_left_out)
        if not self._begun and response.HasField("times"):
            self._context.first_token.add(response.times)

    async def _seeing(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does the work; where an engine misses features of images, has them made again and repeats it."""
        for _ in range(MAX_SEEN_AGAIN):
            try:
                return await work()
            except MediaMissing as missing:
                try:
                    await self._start.encode_media()
                except MoonshardError as error:
                    # Not of the engine's making: another one would not do better.
                    raise MediaLost(f"{missing.message}; {error.message}", retry_after_s=LOST_RETRY_S) from error
        raise MediaLost("images of this request do not stay in the store", retry_after_s=LOST_RETRY_S)

    def _prompt(self) -> pb.Prompt:
        """The prompt and what was generated so far, from which any replica can go on."""
        return pb.Prompt(
            token_ids=[*self._start.prompt_ids, *self.token_ids],
            num_prompt_tokens=len(self._start.prompt_ids),
            media=self._start.media,
            tenant=self._context.owner,
            priority=self._start.priority,
        )

    def _was_last(self) -> bool:
        """Whether a lost replica had sent everything but the finish reason."""
        sampling = self._start.sampling
        if self.token_ids and self.token_ids[-1] in sampling.stop_token_ids:
            self.finish_reason = pb.STOP
        elif len(self.token_ids) >= sampling.max_new_tokens:
            self.finish_reason = pb.LENGTH
        return self.finish_reason != pb.FINISH_REASON_UNSPECIFIED

    async def _take(
        self, token_ids: list[int], finish_reason: FinishReason, num_cached_tokens: int, shown: BatchQueue[list[int]]
    ) -> None:
        if not self.prompt_computed.is_set():
            self.num_cached_tokens = num_cached_tokens
            self.prompt_computed.set()
        self.token_ids += token_ids
        self.finish_reason = finish_reason
        visible = token_ids[:-1] if finish_reason == pb.STOP else token_ids
        if visible:
            await shown.put(visible)
