"""From a conversation as the client sent it to the prompt that the model reads."""

from collections.abc import Sequence

from protos.tokenizer_pb2 import CONTENT, REASONING, RenderRequest, RenderResponse
from services.checkpoint.markers import Marker
from services.tokenizer.call_ids import canonical_ids
from services.tokenizer.declaration import declare
from services.tokenizer.encoding import PromptEncoder
from services.tokenizer.invalid import invalid
from services.tokenizer.memo import Memo
from services.tokenizer.messages import Message, messages_from_proto
from services.tokenizer.template import PromptOptions, render
from services.tokenizer.tools import parse_tools
from services.tokenizer.vocabulary import Vocabulary

TOOLS_SHARE = 8  # declarations of tools get one of so many parts of the memory


class Renderer:
    """Renders conversations, and remembers declarations of tools and ids of texts that come again with each turn.

    max_remembered_bytes  of memory for them, most of it for texts
    """

    def __init__(self, vocabulary: Vocabulary, max_remembered_bytes: int) -> None:
        self._vocabulary = vocabulary
        for_tools = max_remembered_bytes // TOOLS_SHARE
        self._declare = Memo(lambda tools_json: declare(parse_tools(tools_json)), for_tools)
        self._encoder = PromptEncoder(vocabulary, max_remembered_bytes - for_tools)

    def render(self, request: RenderRequest) -> RenderResponse:
        """Return the ids of the prompt, the places of its media, and the start of the parser of the answer."""
        messages = canonical_ids(messages_from_proto(request.messages))
        options = PromptOptions(
            thinking=request.thinking,
            preserve_thinking=request.preserve_thinking,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
        )
        if options.continue_final_message:
            _check_continuation(messages, options)
        prompt = self._encoder.encode(render(messages, self._declare(request.tools_json), options))
        # The prompt decides, so that no flag can disagree with the last token that the model saw.
        thinks = prompt.token_ids[-1:] == [self._vocabulary.marker_ids[Marker.THINK_BEGIN]]
        prompt.parser_state = REASONING if thinks else CONTENT
        prompt.history_call_ids.extend(call.id for message in messages for call in message.calls)
        prompt.num_history_calls = len(prompt.history_call_ids)
        return prompt


def _check_continuation(messages: Sequence[Message], options: PromptOptions) -> None:
    field = f"messages[{len(messages) - 1}]"
    if options.add_generation_prompt:
        raise invalid("continue_final_message", "an answer either begins or goes on")
    if not messages or messages[-1].role != "assistant":
        raise invalid(f"{field}.role" if messages else "messages", "only an assistant message can go on")
    if messages[-1].calls:
        raise invalid(f"{field}.tool_calls", "a message that calls tools cannot go on")
