"""The cluster behind the gateway: the replicas of every role, and the calls that any of them can answer."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message

from gateway.cluster.affinity import PrefixMap, conversation_key
from gateway.cluster.choose import RoundRobin, choose_renderer
from gateway.cluster.demand import DemandBook
from gateway.cluster.hand_over import HandOver
from gateway.cluster.replica import Replica
from gateway.cluster.replicas import ATTENTION, TOKENIZER, VISION, ReplicaPool
from gateway.http.request_context import RequestContext
from gateway.settings import GatewaySettings
from gateway.version import VERSION
from protos.tokenizer_pb2 import (
    DescribeRequest,
    DescribeResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    EncodeRequest,
    RenderRequest,
    RenderResponse,
)
from services.runtime.errors import MoonshardError

T = TypeVar("T")


class Cluster:
    """Owns the replicas, and what is known about the model."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.demand = DemandBook()
        self.tokenizers = ReplicaPool("tokenizer", settings.tokenizers, TOKENIZER, settings, self.demand)
        self.prefills = ReplicaPool("prefill", settings.prefills, ATTENTION, settings, self.demand)
        self.decodes = ReplicaPool("decode", settings.decodes, ATTENTION, settings, self.demand)
        self.visions = ReplicaPool("vision", settings.visions, VISION, settings, self.demand)
        self.prefixes = PrefixMap()
        self.next_tokenizer = RoundRobin()
        self._next_vision = RoundRobin()
        self._settings = settings
        self._model: DescribeResponse | None = None
        self._token_bytes: dict[int, bytes] = {}

    async def open(self) -> None:
        """Start to watch all replicas."""
        for pool in self.pools:
            await pool.open()

    async def close(self) -> None:
        """Close all channels."""
        for pool in self.pools:
            await pool.close()

    @property
    def can_serve(self) -> bool:
        """Return whether a request would find all roles that it needs."""
        return bool(self.tokenizers.serving and self.decodes.serving)

    def serving_since_s(self) -> float | None:
        """Return since when (time.monotonic) a request would find all roles that it needs; None while it would not."""
        tokenizers_s, decodes_s = self.tokenizers.serving_since_s, self.decodes.serving_since_s
        return max(tokenizers_s, decodes_s) if tokenizers_s is not None and decodes_s is not None else None

    @property
    def can_hold(self) -> bool:
        """Return whether a request would be held while its roles wake: something wakes them, and there is room."""
        wakes = self._settings.wake_s > 0 and self.demand.is_watched and bool(self.tokenizers.serving)
        return wakes and all(pool.num_held < self._settings.max_held for pool in self.pools)

    @property
    def what_is_missing(self) -> str:
        """Return why no chat request can be answered, for people."""
        if not self.tokenizers.serving:
            return "no tokenizer is ready"
        if self._settings.wake_s > 0 and not self.demand.is_watched:
            return "no decode replica is ready, and no autoscaler reads the demand"
        return "no decode replica is ready"

    @property
    def fingerprint(self) -> str:
        """Return a name that changes with the build and the vocabulary, which is known once a request was rendered."""
        revision = self._model.revision[:12] if self._model is not None else "unknown"
        return f"fp_{VERSION}_{revision}"

    async def describe(self, context: RequestContext) -> DescribeResponse:
        """Return vocabulary size, context length, stop tokens. Asked once: all replicas serve the same checkpoint."""
        if self._model is None:
            self._model = await self._ask_tokenizer(
                lambda replica: replica.tokenizer.Describe, DescribeRequest(), context
            )
        return self._model

    async def render(self, request: RenderRequest, context: RequestContext) -> RenderResponse:
        """Return the prompt of a conversation, from the replica that remembers its earlier turns unless it is busy."""

        async def ask(replica: Replica, left_s: float) -> RenderResponse:
            replica.num_rendering += 1
            try:
                return await replica.tokenizer.Render(request, timeout=left_s, metadata=context.metadata)
            finally:
                replica.num_rendering -= 1

        choose = partial(choose_renderer, key=conversation_key(request))
        return await self._ask(self.tokenizers, choose, self._settings.tokenizer_s, context, ask)

    async def tokenize(self, text: str, context: RequestContext, *, allow_special: bool) -> list[int]:
        """Return the tokens of a text; `allow_special` makes special tokens of what looks like them."""
        request = EncodeRequest(text=text, allow_special=allow_special)
        encoded = await self._ask_tokenizer(lambda replica: replica.tokenizer.Encode, request, context)
        return list(encoded.token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], context: RequestContext, *, skip_special: bool
    ) -> DetokenizeResponse:
        """Return the text of tokens; InvalidRequest for one outside the vocabulary."""
        request = DetokenizeRequest(token_ids=token_ids, skip_special=skip_special)
        return await self._ask_tokenizer(lambda replica: replica.tokenizer.Detokenize, request, context)

    async def token_bytes(self, token_ids: Iterable[int], context: RequestContext) -> Mapping[int, bytes]:
        """Return the bytes of at least these tokens; each is fetched once."""
        if unknown := [token_id for token_id in set(token_ids) if token_id not in self._token_bytes]:
            response = await self.detokenize(unknown, context, skip_special=False)
            self._token_bytes.update(zip(unknown, response.token_bytes, strict=True))
        return self._token_bytes

    async def encode(self, ask: Callable[[Replica, float], Awaitable[T]], context: RequestContext) -> T:
        """Return the answer of any vision replica."""
        return await self._ask(self.visions, self._next_vision, self._settings.vision_s, context, ask)

    async def context_tokens(self, context: RequestContext) -> int:
        """Return the most tokens of prompt and answer: the model's limit, or the decode replicas' if that is less."""
        limits = [replica.load.context_tokens for replica in self.decodes.serving if replica.load.context_tokens]
        return min([(await self.describe(context)).context_tokens, *limits])

    async def _ask_tokenizer(
        self, method: Callable[[Replica], Callable[..., Awaitable[T]]], request: Message, context: RequestContext
    ) -> T:
        def ask(replica: Replica, left_s: float) -> Awaitable[T]:
            return method(replica)(request, timeout=left_s, metadata=context.metadata)

        return await self._ask(self.tokenizers, self.next_tokenizer, self._settings.tokenizer_s, context, ask)

    async def _ask(
        self,
        pool: ReplicaPool,
        policy: Callable[[Sequence[Replica]], Replica],
        at_most_s: float,
        context: RequestContext,
        ask: Callable[[Replica, float], Awaitable[T]],
    ) -> T:
        """Return the answer of any replica of a stateless role; a lost one's call is repeated on the next."""
        hand_over = HandOver(pool, policy, context, self._settings)
        while True:
            replica = await hand_over.next_replica()
            try:
                return await ask(replica, context.left_s(at_most_s))
            except MoonshardError as error:
                await hand_over.failed(replica, error)

    @property
    def pools(self) -> tuple[ReplicaPool, ...]:
        """Return the pools of all roles."""
        return (self.tokenizers, self.visions, self.prefills, self.decodes)
