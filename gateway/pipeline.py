"""The life of one request: admitted, rendered, generated, parsed, and over when its last choice is."""

from contextlib import ExitStack

from gateway.admission import Admission
from gateway.call import CallContext
from gateway.cluster import Cluster
from gateway.errors import ContextExceeded
from gateway.generation import Start
from gateway.internal import Conversation, Request, Usage
from gateway.media import MediaDesk
from gateway.rendering import parse_start, render_request, sampling_of, seeded
from gateway.run import Run
from gateway.settings import GatewaySettings
from protos.tokenizer_pb2 import RenderResponse
from services.runtime.errors import InvalidRequest


class Pipeline:
    """Starts requests. Owns the bound on how many are open."""

    def __init__(self, cluster: Cluster, settings: GatewaySettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._media = MediaDesk(cluster, settings)
        self._admission = Admission(settings.max_open_requests)

    @property
    def num_open(self) -> int:
        """Requests that were admitted and not closed."""
        return self._admission.num_open

    async def start(self, request: Request, call: CallContext) -> Run:
        """A running request, which the caller must close.

        Raises Overloaded if too many are open, ContextExceeded, InvalidRequest for what only the tokenizer can see,
        Unavailable if nobody is ready in time.
        """
        _refuse_what_is_not_done(request)
        with ExitStack() as held:
            held.enter_context(self._admission.enter())
            rendered = await self._render(request.conversation, call)
            model = await self._cluster.describe(call)
            context_tokens = await self._cluster.context_tokens(call)
            num_tokens = len(rendered.token_ids)
            if num_tokens >= context_tokens:
                raise ContextExceeded(num_tokens, context_tokens)
            sampling = seeded(request.sampling)
            starts = [
                Start(
                    rendered.token_ids,
                    rendered.media,
                    sampling_of(
                        sampling,
                        model,
                        choice=choice,
                        room=context_tokens - num_tokens,
                        default_max_tokens=self._settings.default_max_tokens,
                    ),
                    see_again=lambda: self._media.see(request.conversation, call),
                )
                for choice in range(request.num_choices)
            ]
            parser = parse_start(request.output, request.conversation.tools_json, rendered)
            run = Run(self._cluster, self._settings, call, starts, parser, Usage(num_tokens))
            run.held = held.pop_all()
            return run

    async def count(self, conversation: Conversation, call: CallContext) -> int:
        """Tokens of a prompt, images and videos included. Raises what start raises, but ContextExceeded."""
        with self._admission.enter():
            return len((await self._render(conversation, call)).token_ids)

    async def _render(self, conversation: Conversation, call: CallContext) -> RenderResponse:
        seen = await self._media.see(conversation, call)
        return await self._cluster.render(render_request(conversation, seen), call)


def _refuse_what_is_not_done(request: Request) -> None:
    """Raises InvalidRequest, naming the field, for what every face understands and no engine does."""
    for demand in (request.forced_call, request.json_answer):
        if demand is not None:
            raise InvalidRequest(f"{demand.field}: this value is not supported yet", field=demand.field)
