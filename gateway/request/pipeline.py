"""The life of one request: admitted, rendered, generated, parsed, and over when its last choice is."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from gateway.cluster.cluster import Cluster
from gateway.http.errors import ContextExceeded
from gateway.http.request_context import RequestContext
from gateway.http.stopping import Stopping
from gateway.request.active_request import ActiveRequest
from gateway.request.admission import Admission
from gateway.request.answer_model import Usage
from gateway.request.chat_model import Conversation, RawPrompts, Request, Text
from gateway.request.constraint import constraint_of
from gateway.request.files import FileDesk
from gateway.request.forecast import Forecast
from gateway.request.generation import Start
from gateway.request.media import MediaDesk
from gateway.request.rendering import parse_start, render_request, sampling_of, seeded
from gateway.request.spans import trace_request
from gateway.settings import GatewaySettings
from protos.attention_pb2 import TokenSequence
from protos.tokenizer_pb2 import CONTENT, RenderResponse
from services.runtime.errors import InvalidRequest, RequestTooLarge

# They come in one message.
MAX_PROMPT_LOGPROBS = 2**18
# Beyond these a conversation is translated in a thread.
LARGE_MESSAGES = 200
LARGE_CHARS = 500_000


class Pipeline:
    """Starts requests. Owns the bound on how many are open."""

    def __init__(self, cluster: Cluster, settings: GatewaySettings, files: FileDesk, stopping: Stopping) -> None:
        self._cluster = cluster
        self._demand = cluster.demand
        self._stopping = stopping
        self._settings = settings
        self._media = MediaDesk(cluster, settings, files)
        self._forecast = Forecast(cluster.serving_since_s)
        self._admission = Admission(settings.max_open_requests, settings.begin_s, self._forecast)

    @property
    def num_open(self) -> int:
        """Requests that were admitted and not closed."""
        return self._admission.num_open

    async def start(self, request: Request, context: RequestContext) -> ActiveRequest:
        """Return a running request, which the caller must close.

        Raises Overloaded if too many are open or it would wait too long, ContextExceeded, InvalidRequest for what only
        the tokenizer can see, Unavailable if nobody is ready in time.
        """
        trace_request(context, request, self._settings)
        async with self._stopping.ending():
            return await self._start(request, context)

    async def _start(self, request: Request, context: RequestContext) -> ActiveRequest:
        asked = request.conversation
        self.refuse_too_long(asked)
        with ExitStack() as occupied:
            occupied.enter_context(self._admission.enter())
            ticket = occupied.enter_context(self._admission.wait(context))
            # All roles of its path wake together, not one after another.
            with self._demand.need("tokenizer", "prefill", "decode", *_vision(asked)):
                prompts = await asked.prompts(_PromptMaker(self._cluster, self._media, context))
                starts = await self._starts(request, prompts, context)
                occupied.enter_context(self._demand.need("tokenizer", "decode"))
            usage = Usage(sum(len(prompt.token_ids) for prompt in prompts))
            self._forecast.measure(ticket, usage.num_prompt_tokens)
            active = ActiveRequest(
                self._cluster,
                self._settings,
                context,
                starts,
                parse_start(request, prompts[0]),
                usage,
                num_per_prompt=request.num_choices,
                stopping=self._stopping,
                begun=partial(self._forecast.begin, ticket),
            )
            occupied.enter_context(self._demand.queue(active.prompts))
            active.occupied = occupied.pop_all()
            return active

    async def count(self, conversation: Conversation, context: RequestContext) -> int:
        """Count the tokens of a prompt, images and videos included. Raise what start raises, but ContextExceeded."""
        return len(await self.prompt_ids(conversation, context))

    async def prompt_ids(self, conversation: Conversation, context: RequestContext) -> list[int]:
        """Return the tokens that `count` counts."""
        self.refuse_too_long(conversation)
        with self._admission.enter(), self._demand.need("tokenizer", *_vision(conversation)):
            (prompt,) = await conversation.prompts(_PromptMaker(self._cluster, self._media, context))
            return list(prompt.token_ids)

    def refuse_too_long(self, asked: Conversation | RawPrompts) -> None:
        """Raise RequestTooLarge for texts that no context holds, before anything is made of them."""
        most = self._settings.max_text_chars
        if (num_chars := asked.num_chars) > most:
            what = f"{asked.field}: {num_chars} characters of text, at most {most} are accepted"
            raise RequestTooLarge(what, field=asked.field)

    async def _starts(
        self, request: Request, prompts: Sequence[RenderResponse], context: RequestContext
    ) -> list[Start]:
        """Return the start of each choice, those of the first prompt first. Raise ContextExceeded."""
        model = await self._cluster.describe(context)
        context_tokens = await self._cluster.context_tokens(context)
        sampling = seeded(request.sampling)
        bad_words = await self._bad_words(sampling.bad_words, context)
        starts: list[Start] = []
        for prompt in prompts:
            num_tokens = len(prompt.token_ids)
            if num_tokens >= context_tokens:
                raise ContextExceeded(num_tokens, context_tokens)
            num_logprobs = num_tokens * (1 + (sampling.num_prompt_logprobs or 0))
            if sampling.num_prompt_logprobs is not None and num_logprobs > MAX_PROMPT_LOGPROBS:
                most = f"{MAX_PROMPT_LOGPROBS} log-probabilities of a prompt, alternatives included, are possible"
                raise InvalidRequest(f"prompt_logprobs: at most {most}", field="prompt_logprobs")
            constraint = constraint_of(request, prompt)
            for choice in range(request.num_choices):
                drawn = sampling_of(
                    sampling,
                    model,
                    choice=choice,
                    room=context_tokens - num_tokens,
                    default_max_tokens=self._settings.default_max_tokens,
                )
                drawn.bad_words.extend(bad_words)
                if constraint is not None:
                    drawn.constraint.SetInParent()
                    drawn.constraint.CopyFrom(constraint)
                starts.append(
                    Start(
                        prompt.token_ids,
                        prompt.media,
                        drawn,
                        encode_media=partial(self._media.encode_media, request.conversation, context),
                        priority=sampling.priority,
                    )
                )
        return starts

    async def _bad_words(self, words: Sequence[str], context: RequestContext) -> list[TokenSequence]:
        """Return the tokens of each word, at the beginning of a text and after a blank."""
        spellings = [spelling for word in words for spelling in (word, f" {word.lstrip()}")]
        sequences = [
            await self._cluster.tokenize(text, context, allow_special=False) for text in dict.fromkeys(spellings)
        ]
        return [TokenSequence(token_ids=token_ids) for token_ids in sequences]


def _vision(asked: Conversation | RawPrompts) -> tuple[str, ...]:
    """Return the role that encodes images and videos, if there are any."""
    return ("vision",) if asked.media else ()


def _is_large(conversation: Conversation) -> bool:
    """Return whether translating a conversation would hold the event loop up for more than a millisecond or two."""
    texts = (part.text for message in conversation.messages for part in message.content if isinstance(part, Text))
    return len(conversation.messages) > LARGE_MESSAGES or sum(map(len, texts)) > LARGE_CHARS


class _PromptMaker:
    """Makes the prompts of one request."""

    def __init__(self, cluster: Cluster, media: MediaDesk, context: RequestContext) -> None:
        self._cluster = cluster
        self._media = media
        self._context = context

    async def render(self, conversation: Conversation) -> RenderResponse:
        """Return the prompt that the chat template makes, after its images and videos were encoded."""
        with self._context.part("vision") as part:
            encoded = await self._media.encode_media(conversation, part)
        with self._context.part("render") as part:
            build = partial(render_request, conversation, encoded)
            request = await asyncio.to_thread(build) if _is_large(conversation) else build()
            return await self._cluster.render(request, part)

    async def encode(self, prompts: RawPrompts) -> list[RenderResponse]:
        """Return the tokens of prompts. Raise InvalidRequest for a token outside the vocabulary."""
        with self._context.part("render") as part:
            vocab_size = (await self._cluster.describe(part)).vocab_size
            rendered: list[RenderResponse] = []
            for prompt in prompts.texts:
                token_ids: Sequence[int] = (
                    await self._cluster.tokenize(prompt, part, allow_special=True)
                    if isinstance(prompt, str)
                    else prompt
                )
                if any(token_id >= vocab_size for token_id in token_ids):
                    raise InvalidRequest(f"prompt: the vocabulary ends at {vocab_size - 1}", field="prompt")
                rendered.append(RenderResponse(token_ids=token_ids, parser_state=CONTENT))
            return rendered
