"""Which of the many spellings of "think" a chat request uses, and what it asks for."""

from dataclasses import dataclass

from gateway.dialects.chat.schema import ChatCompletionRequest


@dataclass(frozen=True, slots=True)
class ThinkingChoice:
    """Whether to reason, and whether the reasoning of earlier turns stays in the prompt."""

    enabled: bool
    preserve: bool


def resolve_thinking(chat: ChatCompletionRequest) -> ThinkingChoice:
    """The first that is given: `thinking`, the template's two arguments, `reasoning_effort`; else on."""
    template = chat.chat_template_kwargs
    kept = template is not None and template.preserve_thinking is True
    if chat.thinking is not None and chat.thinking.type is not None:
        enabled = chat.thinking.type == "enabled"
    elif template is not None and template.thinking is not None:
        enabled = template.thinking
    elif template is not None and template.enable_thinking is not None:
        enabled = template.enable_thinking
    else:
        enabled = chat.reasoning_effort != "none"
    if enabled and chat.thinking is not None:
        kept = kept or chat.thinking.keep == "all"
    return ThinkingChoice(enabled, kept)
