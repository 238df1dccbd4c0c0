"""The model's input for a sample: token ids by the tokenizer service's template, patches by the vision service.

The model learns only its own turns, and only in the form in which it writes them: an earlier turn whose reasoning the
template strips is context.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from protos.media_pb2 import MediaRef, VideoChunk
from protos.tokenizer_pb2 import ChatMessage, ContentPart, ToolCall
from services.checkpoint.markers import Marker
from services.nano.train.sample import Json, Sample, Video
from services.tokenizer.declaration import declare
from services.tokenizer.encoding import PromptEncoder
from services.tokenizer.messages import Message, messages_from_proto
from services.tokenizer.template import PromptOptions, Segment, render
from services.tokenizer.tools import parse_tools
from services.tokenizer.vocabulary import Vocabulary
from services.vision.grid import FrameSize, MediaConfig, frame_size
from services.vision.model import Grid
from services.vision.preprocess import Pixels, fit, patchify
from services.vision.sampling import plan_chunks


@dataclass(frozen=True)
class Item:
    """One image, or one chunk of a video; patches [patches, 3, patch, patch] u8."""

    grid: Grid
    patches: Pixels


@dataclass(frozen=True)
class Example:
    """A sample as input of a training step.

    token_ids  tokens of the whole conversation
    targets    whether the model should write each token
    places     first placeholder of each item
    """

    skill: str
    token_ids: list[int]
    targets: list[bool]
    items: list[Item]
    places: list[int]


def example(sample: Sample, vocabulary: Vocabulary, config: MediaConfig) -> Example:
    """Render the sample as the services do, its last answer included."""
    items: list[Item] = []
    prompt = PromptEncoder(vocabulary, max_remembered_bytes=0).encode(segments(sample, config, items))
    token_ids = list(prompt.token_ids)
    targets = _targets(token_ids, sample, vocabulary)
    return Example(sample.skill, token_ids, targets, items, [span.offset for span in prompt.media])


def segments(sample: Sample, config: MediaConfig, items: list[Item]) -> list[Segment]:
    """Render the conversation to text and markers; append its pictures to `items`."""
    images, videos = iter(sample.images), iter(sample.videos)
    protos = [_message(message, images, videos, config, items) for message in sample.messages]
    declaration = declare(parse_tools(json.dumps(list(sample.tools)) if sample.tools else ""))
    *earlier, last = template_messages(protos)
    # Rendered separately, because among the other messages the template would strip its reasoning.
    answer = render([last], "", PromptOptions(preserve_thinking=True, add_generation_prompt=False))
    return [*render(earlier, declaration, _options(sample)), *answer]


def template_messages(protos: Sequence[ChatMessage]) -> list[Message]:
    """Convert messages to the template's form; ids of calls are already canonical."""
    return messages_from_proto(protos)


def _options(sample: Sample) -> PromptOptions:
    return PromptOptions(sample.thinking, sample.preserve_thinking, add_generation_prompt=False)


def _message(
    message: Json, images: Iterator[Image.Image], videos: Iterator[Video], config: MediaConfig, items: list[Item]
) -> ChatMessage:
    content = message.get("content") or ()
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    proto = ChatMessage(
        role=message["role"], name=message.get("name", ""), tool_call_id=message.get("tool_call_id", "")
    )
    if message.get("reasoning_content") is not None:
        proto.reasoning = message["reasoning_content"]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        proto.tool_calls.append(ToolCall(id=call["id"], name=function["name"], arguments=function["arguments"]))
    for part in parts:
        match part["type"]:
            case "text":
                proto.content.append(ContentPart(text=part["text"]))
            case "image_url":
                proto.content.append(ContentPart(image=_image(next(images), config, items)))
            case "video_url":
                proto.content.append(ContentPart(video=_video(next(videos), config, items)))
            case other:
                raise ValueError(f"a part of type {other} can not be rendered")
    return proto


def _image(image: Image.Image, config: MediaConfig, items: list[Item]) -> MediaRef:
    size = frame_size(image.width, image.height, config.image_patches, config)
    return _item([image], size, config, items)


def _video(video: Video, config: MediaConfig, items: list[Item]) -> MediaRef:
    first = video.frames[0]
    size = frame_size(first.width, first.height, config.frame_patches, config)
    chunks = [
        VideoChunk(
            prompt_text=plan.prompt_text,
            media=_item([video.frames[index] for index in plan.frame_ids], size, config, items),
        )
        for plan in plan_chunks(len(video.frames), video.fps, config)
    ]
    return MediaRef(chunks=chunks)


def _item(frames: Sequence[Image.Image], size: FrameSize, config: MediaConfig, items: list[Item]) -> MediaRef:
    pixels = np.stack([fit(frame.convert("RGB"), size, config.patch_size) for frame in frames])
    grid = Grid(len(frames), size.grid_h, size.grid_w)
    items.append(Item(grid, patchify(pixels, config.patch_size)))
    return MediaRef(grid_t=grid.frames, grid_h=grid.rows, grid_w=grid.columns, num_tokens=size.num_tokens)


def _targets(ids: Sequence[int], sample: Sample, vocabulary: Vocabulary) -> list[bool]:
    """Return True after the opening of each answer, `<think>` or `<think></think>`, up to the end of the turn."""
    begin, end, opens, turn_ends = (
        vocabulary.marker_ids[marker] for marker in (Marker.THINK_BEGIN, Marker.THINK_END, Marker.ASSISTANT, Marker.END)
    )
    targets = [False] * len(ids)
    turns = [index for index, token_id in enumerate(ids) if token_id == opens]
    answers = [message for message in sample.messages if message["role"] == "assistant"]
    for turn, message in zip(turns, answers, strict=True):
        start = ids.index(begin, turn) + 1
        stop = ids.index(turn_ends, start) + 1
        stripped = ids[start] == end
        # The thoughts of a thinking model are never empty.
        if stripped and (sample.thinking or message.get("reasoning_content")):
            continue
        if stripped and not sample.thinking:
            start += 1
        targets[start:stop] = [True] * (stop - start)
    return targets
