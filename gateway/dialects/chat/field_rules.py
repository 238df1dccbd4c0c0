"""What the chat dialect says to fields outside its schema."""

from gateway.dialects import field_rules
from gateway.dialects.unknown_fields import FieldRules, Refusal

RULES = FieldRules(
    refused={
        **field_rules.REFUSED,
        "functions": Refusal("use `tools`"),
        "function_call": Refusal("use `tool_choice`"),
        "messages.function_call": Refusal("use `tool_calls`"),
        "messages.prefix": Refusal("use `partial`", (False,)),
        "messages.audio": Refusal("the model does not hear"),
        "chat_template": Refusal("the model's own template is always used"),
        "documents": Refusal("send them as text in a message", ([],)),
        "mm_processor_kwargs": Refusal("images and videos are always prepared as the model was trained", ({},)),
        "media_io_kwargs": Refusal("images and videos are always prepared as the model was trained", ({},)),
        "audio": Refusal("the model does not speak"),
        "modalities": Refusal("the model writes text", (["text"],)),
        "web_search_options": Refusal("the server does not search"),
        "moderation": Refusal("the server does not judge texts"),
        "best_of": Refusal("use `n`", (1,)),
        "echo": Refusal("use POST /v1/completions", (False,)),
        "suffix": Refusal("the model does not fill in", ("",)),
        "parse_tool_calls": Refusal("tool calls are always parsed", (True,)),
        "separate_reasoning": Refusal("reasoning has always a field of its own", (True,)),
        "stream_reasoning": Refusal("use `include_reasoning`", (True,)),
        "reasoning_format": Refusal("reasoning has always a field of its own", ("auto", "deepseek")),
    },
    no_effect=field_rules.NO_EFFECT
    | {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
        "extra_key",
        "custom_labels",
        "thinking.effort",
        "usage",
        "messages.tool_calls.index",
        "messages.annotations",
        "messages.id",
        "messages.tools",
        "messages.content.image_url.detail",
        "messages.content.image_url.format",
        "messages.provider_specific_fields",
        "messages.tool_calls.provider_specific_fields",
    },
)
