"""The special tokens with a meaning in K2.6's prompt format."""

from enum import Enum


class Marker(Enum):
    """A special token by its text; its id is in the checkpoint's tokenizer_config.json."""

    USER = "<|im_user|>"
    ASSISTANT = "<|im_assistant|>"
    SYSTEM = "<|im_system|>"
    MIDDLE = "<|im_middle|>"
    END = "<|im_end|>"
    THINK_BEGIN = "<think>"
    THINK_END = "</think>"
    SECTION_BEGIN = "<|tool_calls_section_begin|>"
    SECTION_END = "<|tool_calls_section_end|>"
    CALL_BEGIN = "<|tool_call_begin|>"
    CALL_ARGUMENTS = "<|tool_call_argument_begin|>"
    CALL_END = "<|tool_call_end|>"
    MEDIA_BEGIN = "<|media_begin|>"
    MEDIA_CONTENT = "<|media_content|>"
    MEDIA_PAD = "<|media_pad|>"
    MEDIA_END = "<|media_end|>"
    END_OF_TURN = "[EOT]"
    END_OF_SEQUENCE = "[EOS]"


STOPS = (Marker.END, Marker.END_OF_SEQUENCE, Marker.END_OF_TURN)
