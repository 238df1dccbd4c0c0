"""Fields that are refused, so that none is accepted and then ignored. A value without effect passes."""

from collections.abc import Mapping
from typing import Any

from services.runtime.errors import InvalidRequest

# Checked by the schema, not yet done by the engines: the values that ask for nothing.
NOT_YET: Mapping[str, tuple[object, ...]] = {
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structural_tag": (),
    "regex": (),
    "ebnf": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "cache_salt": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "kv_transfer_params": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}

# Never done, and what to do instead.
NEVER: Mapping[str, str] = {
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "chat_template": "the model's own template is always used",
    "audio": "the model does not speak",
    "web_search_options": "the server does not search",
}


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest, naming the field, for the first field that asks for what the server cannot do."""
    for name, rule in NEVER.items():
        if body.get(name) is not None:
            raise InvalidRequest(f"{name} is not supported: {rule}", field=name)
    modalities = body.get("modalities")
    if modalities is not None and modalities != ["text"]:
        raise InvalidRequest('modalities: only ["text"] is supported', field="modalities")
    for name, harmless in NOT_YET.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise InvalidRequest(f"{name} is not supported yet", field=name)
