"""From the internal request to what the tokenizer and the engines are asked."""

import secrets
from dataclasses import replace

import orjson

from gateway.request.chat_model import Conversation, Media, Message, Request, Sampling, Text
from gateway.request.media import MediaRefs, media_key
from protos import attention_pb2, tokenizer_pb2
from services.runtime.errors import InvalidRequest

SEED_BITS = 64
# An odd number with mixed bits (2^64 over the golden ratio) keeps the seeds of the choices apart.
SEED_STRIDE = 0x9E3779B97F4A7C15


def render_request(conversation: Conversation, encoded: MediaRefs) -> tokenizer_pb2.RenderRequest:
    """Return the request to the tokenizer, with references to the encoded media."""
    declared = [tool.declaration for tool in conversation.tools]
    return tokenizer_pb2.RenderRequest(
        messages=[_message(message, encoded) for message in conversation.messages],
        tools_json=orjson.dumps(declared).decode() if declared else "",
        thinking=conversation.thinking,
        preserve_thinking=conversation.preserve_thinking,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
    )


def _message(message: Message, encoded: MediaRefs) -> tokenizer_pb2.ChatMessage:
    return tokenizer_pb2.ChatMessage(
        role=message.role,
        name=message.name,
        content=[_part(part, encoded) for part in message.content],
        reasoning=message.reasoning,
        tool_calls=[
            tokenizer_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
    )


def _part(part: Text | Media, encoded: MediaRefs) -> tokenizer_pb2.ContentPart:
    match part:
        case Text():
            return tokenizer_pb2.ContentPart(text=part.text)
        case Media("image"):
            return tokenizer_pb2.ContentPart(image=encoded[media_key(part)])
        case _:
            return tokenizer_pb2.ContentPart(video=encoded[media_key(part)])


def parse_start(request: Request, rendered: tokenizer_pb2.RenderResponse) -> tokenizer_pb2.ParseStart:
    """Return the start of each choice's parser."""
    asked, output = request.conversation, request.output
    return tokenizer_pb2.ParseStart(
        state=rendered.parser_state,
        tools=[tokenizer_pb2.DeclaredTool(name=tool.name, properties=tool.properties) for tool in asked.tools],
        num_history_calls=rendered.num_history_calls,
        history_call_ids=rendered.history_call_ids,
        drop_tool_calls=output.drop_tool_calls,
        stop=output.stop,
        include_stop=output.include_stop,
        max_tool_calls=output.max_tool_calls,
        raw=asked.is_raw,
        keep_special=output.keep_special,
        name_content=request.sampling.num_top_logprobs is not None,
    )


def seeded(sampling: Sampling) -> Sampling:
    """Return the same with a seed, drawn once, so that every repetition of a call draws the same tokens."""
    return sampling if sampling.seed is not None else replace(sampling, seed=secrets.randbits(63))


def sampling_of(
    sampling: Sampling, model: tokenizer_pb2.DescribeResponse, *, choice: int, room: int, default_max_tokens: int
) -> attention_pb2.Sampling:
    """Return what the engines need to draw the tokens of one choice.

    room  tokens that fit into the context after the prompt; a larger budget is cut to it
    Raises InvalidRequest for a token outside the vocabulary.
    """
    assert sampling.seed is not None
    for field, token_ids in (
        ("stop_token_ids", sampling.stop_token_ids),
        ("logit_bias", [token_id for token_id, _ in sampling.logit_bias]),
        ("allowed_token_ids", sampling.allowed_token_ids),
    ):
        if any(token_id >= model.vocab_size for token_id in token_ids):
            raise InvalidRequest(f"{field}: the vocabulary ends at {model.vocab_size - 1}", field=field)
    own_stops = [] if sampling.ignore_eos else model.stop_token_ids
    budget = min(sampling.max_new_tokens or default_max_tokens, room)
    return attention_pb2.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=(sampling.seed + choice * SEED_STRIDE) % 2**SEED_BITS,
        max_new_tokens=budget,
        stop_token_ids=sorted({*own_stops, *sampling.stop_token_ids}),
        min_new_tokens=min(sampling.min_new_tokens, budget),
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias),
        num_top_logprobs=sampling.num_top_logprobs,
        allowed_token_ids=sampling.allowed_token_ids,
        max_thinking_tokens=sampling.max_thinking_tokens,
        # Further choices have the same prompt.
        num_prompt_logprobs=sampling.num_prompt_logprobs if choice == 0 else None,
    )
