"""Which of the many spellings of "think" a chat request uses, and what it asks for."""

from dataclasses import dataclass

from gateway.dialects.chat.schema import ChatCompletionRequest


@dataclass(frozen=True, slots=True)
class ThinkingChoice:
    """Whether to reason and to show it.

    preserve  the reasoning of earlier turns stays in the prompt
    budget    most tokens of reasoning; None: no limit of its own
    """

    enabled: bool
    shown: bool
    preserve: bool
    budget: int | None


def resolve_thinking(chat: ChatCompletionRequest) -> ThinkingChoice:
    """Return what is asked for. The first given switch of `_switches` decides; without one reasoning is on."""
    enabled = next((switch for switch in _switches(chat) if switch is not None), True)
    template, reasoning = chat.chat_template_kwargs, chat.reasoning
    kept = template is not None and template.preserve_thinking is True
    if enabled and chat.thinking is not None:
        kept = kept or chat.thinking.keep == "all"
    excluded = chat.include_reasoning is False or (reasoning is not None and reasoning.exclude is True)
    return ThinkingChoice(enabled, enabled and not excluded, kept, _budget(chat))


def _switches(chat: ChatCompletionRequest) -> list[bool | None]:
    """Return the switches by rank. True: on, False: off, None: not given."""
    thinking, template, reasoning = chat.thinking, chat.chat_template_kwargs, chat.reasoning
    efforts = (None if reasoning is None else reasoning.effort, chat.reasoning_effort)
    return [
        None if thinking is None or thinking.type is None else thinking.type == "enabled",
        None if template is None else template.thinking,
        None if template is None else template.enable_thinking,
        chat.enable_thinking,
        None if reasoning is None else reasoning.enabled,
        *(None if effort is None else effort != "none" for effort in efforts),
    ]


def _budget(chat: ChatCompletionRequest) -> int | None:
    """Return the least of the budgets, if there is one."""
    budgets = (
        None if chat.thinking is None else chat.thinking.budget_tokens,
        None if chat.chat_template_kwargs is None else chat.chat_template_kwargs.thinking_budget,
        None if chat.reasoning is None else chat.reasoning.max_tokens,
        chat.thinking_budget,
        chat.thinking_token_budget,
        chat.thinking_budget_tokens,
    )
    return min((budget for budget in budgets if budget is not None), default=None)
