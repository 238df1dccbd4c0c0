"""The cluster behind the gateway: the replicas of every role, and the calls that any of them can answer."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from gateway.cluster.affinity import PrefixMap
from gateway.cluster.choose import RoundRobin
from gateway.cluster.demand import DemandBook
from gateway.cluster.hand_over import HandOver
from gateway.cluster.replicas import ATTENTION, TOKENIZER, VISION, Replica, ReplicaPool
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
        """Starts to watch all replicas."""
        for pool in self.pools:
            await pool.open()

    async def close(self) -> None:
        """Closes all channels."""
        for pool in self.pools:
            await pool.close()

    @property
    def can_serve(self) -> bool:
        """Whether a request would find all roles that it needs."""
        return bool(self.tokenizers.serving and self.decodes.serving)

    @property
    def can_hold(self) -> bool:
        """Whether a request would be held while its roles wake: something wakes them, and there is room."""
        wakes = self._settings.wake_s > 0 and self.demand.is_watched and bool(self.tokenizers.serving)
        return wakes and all(pool.num_held < self._settings.max_held for pool in self.pools)

    @property
    def what_is_missing(self) -> str:
        """Why no chat request can be answered, for people."""
        if not self.tokenizers.serving:
            return "no tokenizer is ready"
        if self._settings.wake_s > 0 and not self.demand.is_watched:
            return "no decode replica is ready, and no autoscaler reads the demand"
        return "no decode replica is ready"

    @property
    def fingerprint(self) -> str:
        """Changes with the build and with the vocabulary; known once a request was rendered."""
        revision = self._model.revision[:12] if self._model is not None else "unknown"
        return f"fp_{VERSION}_{revision}"

    async def describe(self, call: RequestContext) -> DescribeResponse:
        """Vocabulary size, context length, stop tokens. Asked once: all replicas serve the same checkpoint."""
        if self._model is None:
            self._model = await self._ask_tokenizer(
                call,
                lambda replica, left_s: replica.tokenizer.Describe(
                    DescribeRequest(), timeout=left_s, metadata=call.metadata
                ),
            )
        return self._model

    async def render(self, request: RenderRequest, call: RequestContext) -> RenderResponse:
        """The prompt of a conversation."""
        return await self._ask_tokenizer(
            call, lambda replica, left_s: replica.tokenizer.Render(request, timeout=left_s, metadata=call.metadata)
        )

    async def tokenize(self, text: str, call: RequestContext, *, allow_special: bool) -> list[int]:
        """The tokens of a text; `allow_special` makes special tokens of what looks like them."""
        request = EncodeRequest(text=text, allow_special=allow_special)
        encoded = await self._ask_tokenizer(
            call, lambda replica, left_s: replica.tokenizer.Encode(request, timeout=left_s, metadata=call.metadata)
        )
        return list(encoded.token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], call: RequestContext, *, skip_special: bool
    ) -> DetokenizeResponse:
        """The text of tokens; InvalidRequest for one outside the vocabulary."""
        request = DetokenizeRequest(token_ids=token_ids, skip_special=skip_special)
        return await self._ask_tokenizer(
            call, lambda replica, left_s: replica.tokenizer.Detokenize(request, timeout=left_s, metadata=call.metadata)
        )

    async def token_bytes(self, token_ids: Iterable[int], call: RequestContext) -> Mapping[int, bytes]:
        """The bytes of at least these tokens; each is asked for once."""
        if unknown := [token_id for token_id in set(token_ids) if token_id not in self._token_bytes]:
            response = await self.detokenize(unknown, call, skip_special=False)
            self._token_bytes.update(zip(unknown, response.token_bytes, strict=True))
        return self._token_bytes

    async def encode(self, ask: Callable[[Replica, float], Awaitable[T]], call: RequestContext) -> T:
        """The answer of any vision replica."""
        return await self._ask(self.visions, self._next_vision, self._settings.vision_s, call, ask)

    async def context_tokens(self, call: RequestContext) -> int:
        """Most tokens of prompt and answer together: the model's limit, or the decode replicas' if that is less."""
        limits = [replica.load.context_tokens for replica in self.decodes.serving if replica.load.context_tokens]
        return min([(await self.describe(call)).context_tokens, *limits])

    async def _ask_tokenizer(self, call: RequestContext, ask: Callable[[Replica, float], Awaitable[T]]) -> T:
        return await self._ask(self.tokenizers, self.next_tokenizer, self._settings.tokenizer_s, call, ask)

    async def _ask(
        self,
        pool: ReplicaPool,
        policy: RoundRobin,
        at_most_s: float,
        call: RequestContext,
        ask: Callable[[Replica, float], Awaitable[T]],
    ) -> T:
        """Return the answer of any replica of a stateless role; a lost one's call is repeated on the next."""
        hand_over = HandOver(pool, policy, call, self._settings)
        while True:
            replica = await hand_over.next_replica()
            try:
                return await ask(replica, call.left_s(at_most_s))
            except MoonshardError as error:
                await hand_over.failed(replica, error)

    @property
    def pools(self) -> tuple[ReplicaPool, ...]:
        """Those of all roles."""
        return (self.tokenizers, self.visions, self.prefills, self.decodes)
