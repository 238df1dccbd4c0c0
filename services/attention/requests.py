"""Makes generations from requests. Every field is checked, none is ignored."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protos import attention_pb2 as pb
from services.attention.engine.generation import Event, Generation
from services.attention.layers.blocks import Offer
from services.attention.sampling.on_host import MOST_TOP_LOGPROBS, SamplingParams
from services.attention.sampling.prompt_scores import PromptScores
from services.checkpoint.block_names import BlockNames, MediaMark
from services.checkpoint.media_names import DIGEST_BYTES
from services.runtime.errors import InvalidRequest
from services.runtime.settings import check_address

MAX_STOP_TOKENS = 64
OFFER_CHARS = 32


@dataclass(frozen=True)
class ReplicaLimits:
    """What a replica accepts."""

    names_root: bytes  # root of the names of its blocks
    vocab_size: int
    block_tokens: int
    num_blocks: int
    max_positions: int
    max_waiting: int
    media_token_id: int  # stands in a prompt where features go
    takes_media: bool  # it has a store to fetch features from
    further_shards: Sequence[str] = ()  # addresses of its shards 1, 2, ...

    @property
    def context_tokens(self) -> int:
        """The most tokens of prompt and answer together: a limit of the model, and one of the block pool."""
        return min(self.max_positions, self.num_blocks * self.block_tokens)


def generation_from_proto(
    request: pb.PrefillRequest | pb.GenerationStart,
    limits: ReplicaLimits,
    *,
    request_id: str,
    hand_over: bool,
    sink: Callable[[Event], None],
) -> Generation:
    """Return the generation that a request asks for; InvalidRequest names a bad field."""
    prompt, sampling = request.prompt, request.sampling
    token_ids = list(prompt.token_ids)
    _check_prompt(prompt, token_ids, limits)
    num_new = len(token_ids) - prompt.num_prompt_tokens
    if num_new >= sampling.max_new_tokens:
        raise InvalidRequest(
            f"max_new_tokens is {sampling.max_new_tokens} and {num_new} tokens were generated already",
            field="max_new_tokens",
        )
    manifest = request.manifest if isinstance(request, pb.GenerationStart) else pb.KvManifest()
    # Blocks of another layout cannot be read, so the prompt is computed here.
    usable = manifest.fingerprint == limits.names_root and manifest.num_tokens < len(token_ids)
    media = [MediaMark(span.offset, span.media.num_tokens, span.media.digest) for span in prompt.media]
    return Generation(
        request_id=request_id,
        token_ids=token_ids,
        num_prompt=prompt.num_prompt_tokens,
        sampling=_sampling(sampling, limits),
        max_tokens=min(prompt.num_prompt_tokens + sampling.max_new_tokens, limits.context_tokens),
        names=BlockNames(
            limits.names_root, limits.block_tokens, _salt(request), media, num_prompt=prompt.num_prompt_tokens
        ),
        prompt_scores=_prompt_scores(request, limits),
        tenant=prompt.tenant,
        sink=sink,
        hand_over=hand_over,
        tail_name=manifest.tail_name if usable else "",
        tail_tokens=manifest.num_tokens if usable else 0,
        offer=_offer(manifest, limits) if usable else None,
    )


def _offer(manifest: pb.KvManifest, limits: ReplicaLimits) -> Offer | None:
    """Return where blocks are offered; None if nowhere, or by a replica that is cut into another number of shards."""
    if not manifest.offer:
        return None
    sources = [manifest.source, *manifest.further_sources]
    if len(manifest.offer) != OFFER_CHARS or not manifest.offer.isascii():
        raise InvalidRequest(f"an offer has {OFFER_CHARS} characters", field="manifest.offer")
    for source in sources:
        try:
            check_address(source)
        except ValueError as error:
            raise InvalidRequest(f"{error}", field="manifest.source") from None
    return Offer(manifest.offer, sources) if len(sources) == 1 + len(limits.further_shards) else None


def _salt(request: pb.PrefillRequest | pb.GenerationStart) -> str:
    """Return what sets the blocks apart from other requests'. Scores need logits, which no cached block has."""
    salt = request.prompt.cache_salt
    return f"{salt} {secrets.token_hex(16)}" if request.sampling.HasField("num_prompt_logprobs") else salt


def _prompt_scores(request: pb.PrefillRequest | pb.GenerationStart, limits: ReplicaLimits) -> PromptScores | None:
    sampling, prompt = request.sampling, request.prompt
    if not sampling.HasField("num_prompt_logprobs"):
        return None
    if isinstance(request, pb.PrefillRequest):
        raise InvalidRequest("only Generate computes log-probabilities of a prompt", field="num_prompt_logprobs")
    if sampling.num_prompt_logprobs > min(MOST_TOP_LOGPROBS, limits.vocab_size):
        raise InvalidRequest(f"at most {MOST_TOP_LOGPROBS} alternatives", field="num_prompt_logprobs")
    return PromptScores(prompt.token_ids[: prompt.num_prompt_tokens], sampling.num_prompt_logprobs)


def _check_prompt(prompt: pb.Prompt, token_ids: list[int], limits: ReplicaLimits) -> None:
    if not token_ids:
        raise InvalidRequest("prompt.token_ids is empty", field="prompt.token_ids")
    if not 0 < prompt.num_prompt_tokens <= len(token_ids):
        raise InvalidRequest(
            f"prompt.num_prompt_tokens is {prompt.num_prompt_tokens} of {len(token_ids)} tokens",
            field="prompt.num_prompt_tokens",
        )
    if len(token_ids) >= limits.context_tokens:
        raise InvalidRequest(
            f"the prompt has {len(token_ids)} tokens, this replica's limit is {limits.context_tokens} with the answer",
            field="prompt.token_ids",
        )
    if max(token_ids) >= limits.vocab_size:
        raise InvalidRequest(
            f"token {max(token_ids)} is outside the vocabulary of {limits.vocab_size}", field="prompt.token_ids"
        )
    _check_media(prompt, token_ids, limits)


def _check_media(prompt: pb.Prompt, token_ids: list[int], limits: ReplicaLimits) -> None:
    """Check that spans are in order and cover exactly the placeholders of the prompt."""
    if prompt.media and not limits.takes_media:
        raise InvalidRequest("this replica has no store to take media from", field="prompt.media")
    end = num_covered = 0
    for index, span in enumerate(prompt.media):
        field, first, count = f"prompt.media[{index}]", span.offset, span.media.num_tokens
        if len(span.media.digest) != DIGEST_BYTES:
            raise InvalidRequest(f"a digest has {DIGEST_BYTES} bytes", field=f"{field}.media.digest")
        if count == 0 or first < end or first + count > prompt.num_prompt_tokens:
            raise InvalidRequest(f"{count} tokens from {first} on do not fit here", field=field)
        end = first + count
        if token_ids[first:end].count(limits.media_token_id) != count:
            raise InvalidRequest(f"not all tokens {first}..{end - 1} are placeholders", field=field)
        num_covered += count
    if token_ids[: prompt.num_prompt_tokens].count(limits.media_token_id) != num_covered:
        raise InvalidRequest("the prompt has placeholders that no medium covers", field="prompt.media")


def _sampling(sampling: pb.Sampling, limits: ReplicaLimits) -> SamplingParams:
    if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(f"more than {MAX_STOP_TOKENS} stop tokens", field="stop_token_ids")
    params = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
        logit_bias=dict(sampling.logit_bias),
        min_new_tokens=sampling.min_new_tokens,
        stop_token_ids=tuple(sampling.stop_token_ids),
        seed=sampling.seed,
        num_top_logprobs=sampling.num_top_logprobs if sampling.HasField("num_top_logprobs") else None,
    )
    params.check(limits.vocab_size)
    return params
