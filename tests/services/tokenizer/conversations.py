"""Conversations of the golden cases as the wire carries them."""

import json

from protos.media_pb2 import MediaRef, VideoChunk
from protos.tokenizer_pb2 import ChatMessage, ContentPart, RenderRequest, RenderResponse, ToolCall
from services.tokenizer.rendering import Renderer
from services.tokenizer.vocabulary import Vocabulary


def image(num_tokens=1) -> ContentPart:
    return ContentPart(image=MediaRef(digest=b"i", num_tokens=num_tokens))


def video(*chunks) -> ContentPart:
    media = [VideoChunk(prompt_text=text, media=MediaRef(digest=b"v", num_tokens=n)) for text, n in chunks]
    return ContentPart(video=MediaRef(chunks=media))


def part_from_json(part) -> ContentPart:
    if part["type"].startswith("image"):
        return image()
    return video() if part["type"].startswith("video") else ContentPart(text=part.get("text", ""))


def message_from_json(message) -> ChatMessage:
    content = message.get("content")
    parts = [ContentPart(text=content)] if isinstance(content, str) else [part_from_json(p) for p in content or []]
    chat = ChatMessage(role=message["role"], name=message.get("name", ""), content=parts)
    for key in ("reasoning_content", "reasoning"):
        if key in message:
            # The released template prints a null as "None"; a client's null never gets so far.
            chat.reasoning = str(message[key])
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        chat.tool_calls.append(ToolCall(id=call["id"], name=call["function"]["name"], arguments=text))
    chat.tool_call_id = message.get("tool_call_id", "")
    return chat


def request_from_json(messages, tools=None, **flags) -> RenderRequest:
    return RenderRequest(
        messages=[message_from_json(message) for message in messages],
        tools_json=json.dumps(tools) if tools else "",
        **{"thinking": True, "add_generation_prompt": True} | flags,
    )


def render_prompt(request: RenderRequest, vocabulary: Vocabulary) -> RenderResponse:
    """Render by a renderer that remembers nothing."""
    return Renderer(vocabulary, max_remembered_bytes=0).render(request)
