"""What the Responses dialect says to fields outside its schema."""

from gateway.dialects.unknown_fields import FieldRules, Refusal

_STATEFUL = "this server keeps no responses"
_OTHER_DIALECT = "this dialect has no such field; use POST /v1/chat/completions"

RULES = FieldRules(
    refused={
        "previous_response_id": Refusal(_STATEFUL),
        "conversation": Refusal(_STATEFUL),
        "prompt": Refusal(_STATEFUL),
        "background": Refusal(_STATEFUL, (False,)),
        "background_options": Refusal(_STATEFUL),
        "context_management": Refusal("the server does not shorten conversations", ([],)),
        "access_programs": Refusal("the server runs no code", ([],)),
        "image": Refusal("the model makes no images"),
        "moderation": Refusal("the server does not judge texts"),
        "messages": Refusal("use `input`"),
        "max_tokens": Refusal("use `max_output_tokens`"),
        "max_completion_tokens": Refusal("use `max_output_tokens`"),
        "response_format": Refusal("use `text.format`"),
        "reasoning_effort": Refusal("use `reasoning.effort`"),
        "reasoning.context": Refusal("earlier turns' reasoning is kept as the chat template has it", ("auto",)),
        "reasoning.mode": Refusal("there is one mode", ("standard",)),
        "stop": Refusal(_OTHER_DIALECT, ([],)),
        "n": Refusal(_OTHER_DIALECT, (1,)),
        "seed": Refusal(_OTHER_DIALECT),
        "logit_bias": Refusal(_OTHER_DIALECT, ({},)),
        "logprobs": Refusal("use `top_logprobs`", (False,)),
        "presence_penalty": Refusal(_OTHER_DIALECT, (0,)),
        "frequency_penalty": Refusal(_OTHER_DIALECT, (0,)),
        "input.output.file_id": Refusal("send the content itself"),
    },
    no_effect=frozenset(
        {
            "client_metadata",
            "prompt_cache_options",
            "prompt_cache_retention",
            "service_tier",
            "stream_options",
            "text.verbosity",
            "truncation",
            "user",
            "tools.allowed_callers",
            "tools.async",
            "tools.defer_loading",
            "tools.output_schema",
            "tools.tools.allowed_callers",
            "tools.tools.async",
            "tools.tools.defer_loading",
            "tools.tools.output_schema",
            "input.async",
            "input.caller",
            "input.id",
            "input.phase",
            "input.status",
            "input.content.annotations",
            "input.content.detail",
            "input.content.logprobs",
            "input.output.detail",
            "*.cache_control",
        }
    ),
)
