"""What the dialect of plain completions says to fields outside its schema."""

from gateway.dialects import field_rules
from gateway.dialects.unknown_fields import FieldRules, Refusal

RULES = FieldRules(
    refused={
        **field_rules.REFUSED,
        "suffix": Refusal("the model does not fill in", ("",)),
        "return_full_text": Refusal("use `echo`", (False,)),
        "messages": Refusal("use POST /v1/chat/completions"),
        "tools": Refusal("use POST /v1/chat/completions", ([],)),
    },
    no_effect=field_rules.NO_EFFECT - {"add_special_tokens"},
)
