"""The life of one request: admitted, rendered, generated, parsed, and over when its last choice is."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from gateway.cluster.cluster import Cluster
from gateway.http.errors import ContextExceeded
from gateway.http.request_context import RequestContext
from gateway.http.stopping import Stopping
from gateway.request.active_request import ActiveRequest
from gateway.request.admission import Admission
from gateway.request.chat_model import Conversation, RawPrompts, Request, Usage
from gateway.request.constraint import constraint_of
from gateway.request.files import FileDesk
from gateway.request.forecast import Forecast
from gateway.request.generation import Start
from gateway.request.media import MediaDesk, media_of
from gateway.request.rendering import parse_start, render_request, sampling_of, seeded
from gateway.request.spans import tell_request
from gateway.settings import GatewaySettings
from protos.tokenizer_pb2 import CONTENT, RenderResponse
from services.runtime.errors import InvalidRequest


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
        """A running request, which the caller must close.

        Raises Overloaded if too many are open or it would wait too long, ContextExceeded, InvalidRequest for what only
        the tokenizer can see, Unavailable if nobody is ready in time.
        """
        tell_request(context, request, self._settings)
        async with self._stopping.ending():
            return await self._start(request, context)

    async def _start(self, request: Request, context: RequestContext) -> ActiveRequest:
        with ExitStack() as held:
            held.enter_context(self._admission.enter())
            ticket = held.enter_context(self._admission.wait(context))
            # All roles of its path wake together, not one after another.
            with self._demand.need("tokenizer", "prefill", "decode", *self._vision(request.conversation)):
                prompts = await self._prompts(request.conversation, context)
                starts = await self._starts(request, prompts, context)
                held.enter_context(self._demand.need("tokenizer", "decode"))
            raw = isinstance(request.conversation, RawPrompts)
            tools_json = "" if isinstance(request.conversation, RawPrompts) else request.conversation.tools_json
            parser = parse_start(request.output, tools_json, prompts[0], raw=raw)
            usage = Usage(sum(len(prompt.token_ids) for prompt in prompts))
            self._forecast.measure(ticket, usage.num_prompt_tokens)
            run = ActiveRequest(
                self._cluster,
                self._settings,
                context,
                starts,
                parser,
                usage,
                num_per_prompt=request.num_choices,
                stopping=self._stopping,
                begun=partial(self._forecast.begin, ticket),
            )
            held.enter_context(self._demand.queue(run.prompts))
            run.held = held.pop_all()
            return run

    async def count(self, conversation: Conversation, context: RequestContext) -> int:
        """Tokens of a prompt, images and videos included. Raises what start raises, but ContextExceeded."""
        return len(await self.prompt_ids(conversation, context))

    async def prompt_ids(self, conversation: Conversation, context: RequestContext) -> list[int]:
        """The tokens that `count` counts."""
        with self._admission.enter(), self._demand.need("tokenizer", *self._vision(conversation)):
            return list((await self._render(conversation, context)).token_ids)

    async def _starts(
        self, request: Request, prompts: Sequence[RenderResponse], context: RequestContext
    ) -> list[Start]:
        """Where each choice starts, those of the first prompt first. Raises ContextExceeded."""
        model = await self._cluster.describe(context)
        context_tokens = await self._cluster.context_tokens(context)
        sampling = seeded(request.sampling)
        starts: list[Start] = []
        for prompt in prompts:
            num_tokens = len(prompt.token_ids)
            if num_tokens >= context_tokens:
                raise ContextExceeded(num_tokens, context_tokens)
            constraint = constraint_of(request, prompt)
            for choice in range(request.num_choices):
                drawn = sampling_of(
                    sampling,
                    model,
                    choice=choice,
                    room=context_tokens - num_tokens,
                    default_max_tokens=self._settings.default_max_tokens,
                )
                if constraint is not None:
                    drawn.constraint.SetInParent()
                    drawn.constraint.CopyFrom(constraint)
                starts.append(
                    Start(prompt.token_ids, prompt.media, drawn, see_again=partial(self._see_again, request, context))
                )
        return starts

    @staticmethod
    def _vision(asked: Conversation | RawPrompts) -> tuple[str, ...]:
        """The role that sees, if there is anything to see."""
        return ("vision",) if isinstance(asked, Conversation) and media_of(asked) else ()

    async def _see_again(self, request: Request, context: RequestContext) -> None:
        if isinstance(request.conversation, Conversation):
            await self._media.see(request.conversation, context)

    async def _prompts(self, asked: Conversation | RawPrompts, context: RequestContext) -> list[RenderResponse]:
        if isinstance(asked, Conversation):
            return [await self._render(asked, context)]
        with context.part("render") as part:
            return await self._raw_prompts(asked, part)

    async def _raw_prompts(self, asked: RawPrompts, context: RequestContext) -> list[RenderResponse]:
        vocab_size = (await self._cluster.describe(context)).vocab_size
        prompts: list[RenderResponse] = []
        for prompt in asked.prompts:
            if isinstance(prompt, str):
                token_ids: Sequence[int] = await self._cluster.tokenize(prompt, context, allow_special=True)
            else:
                token_ids = prompt
            if any(token_id >= vocab_size for token_id in token_ids):
                raise InvalidRequest(f"prompt: the vocabulary ends at {vocab_size - 1}", field="prompt")
            prompts.append(RenderResponse(token_ids=token_ids, parser_state=CONTENT))
        return prompts

    async def _render(self, conversation: Conversation, context: RequestContext) -> RenderResponse:
        with context.part("vision") as part:
            seen = await self._media.see(conversation, part)
        with context.part("render") as part:
            return await self._cluster.render(render_request(conversation, seen), part)
