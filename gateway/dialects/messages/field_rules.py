"""What Anthropic's dialect says to fields outside its schema."""

from gateway.dialects.unknown_fields import FieldRules, Refusal

_OTHER_DIALECT = "this dialect has no such field; use POST /v1/chat/completions"

RULES = FieldRules(
    refused={
        "container": Refusal("the server runs no code"),
        "mcp_servers": Refusal("the server calls no tools", ([],)),
        "fallbacks": Refusal("one model is served", ([],)),
        "thread": Refusal("the server keeps no threads"),
        "compaction": Refusal("the server does not shorten conversations"),
        "stop": Refusal("use `stop_sequences`", ([],)),
        "max_completion_tokens": Refusal("use `max_tokens`"),
        "response_format": Refusal("use `output_config.format`"),
        "reasoning_effort": Refusal("use `thinking`"),
        "n": Refusal(_OTHER_DIALECT, (1,)),
        "seed": Refusal(_OTHER_DIALECT),
        "logprobs": Refusal(_OTHER_DIALECT, (False,)),
        "logit_bias": Refusal(_OTHER_DIALECT, ({},)),
        "min_p": Refusal(_OTHER_DIALECT, (0,)),
        "presence_penalty": Refusal(_OTHER_DIALECT, (0,)),
        "frequency_penalty": Refusal(_OTHER_DIALECT, (0,)),
        "repetition_penalty": Refusal(_OTHER_DIALECT, (1,)),
    },
    no_effect=frozenset(
        {
            "betas",
            "billing_policy",
            "diagnostics",
            "fallback_credit_token",
            "inference_geo",
            "metadata",
            "output_config.effort",
            "output_config.task_budget",
            "prefill",
            "service_tier",
            "speed",
            "thinking.block_binding",
            "user_profile_id",
            "workspace_id",
            "tools.allowed_callers",
            "tools.defer_loading",
            "tools.eager_input_streaming",
            "tools.input_examples",
            "cache_control",
            "*.cache_control",
            "*.caller",
            "*.citations",
            "*.media_type",
            "messages.content.context",
            "messages.content.content.context",
        }
    ),
)
