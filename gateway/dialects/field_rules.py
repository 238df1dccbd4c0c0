"""What other servers do with a field and this one does not, for all dialects that draw tokens as OpenAI's do."""

from collections.abc import Mapping

from gateway.dialects.unknown_fields import Refusal

_BEAMS = "tokens are drawn one by one, there is no beam search"
_SHAPE = "this way to shape the distribution does not exist here"
_LIMIT = "use `max_tokens`"
_ADAPTER = "there are no adapters"
_INNER = "it belongs to another server's inner workings"
_TEXTS = "constrained text has no such option"

# vLLM, SGLang, llama.cpp, TGI and transformers; the values that ask for nothing pass.
REFUSED: Mapping[str, Refusal] = {
    "use_beam_search": Refusal(_BEAMS, (False,)),
    "beam_width": Refusal(_BEAMS, (1,)),
    "num_beams": Refusal(_BEAMS, (1,)),
    "num_beam_groups": Refusal(_BEAMS, (1,)),
    "diversity_penalty": Refusal(_BEAMS, (0,)),
    "length_penalty": Refusal(_BEAMS, (1,)),
    "early_stopping": Refusal(_BEAMS, (False,)),
    "typical_p": Refusal(_SHAPE, (1,)),
    "top_a": Refusal(_SHAPE, (0,)),
    "top_n_sigma": Refusal(_SHAPE, (-1, 0)),
    "tfs_z": Refusal(_SHAPE, (1,)),
    "mirostat": Refusal(_SHAPE, (0,)),
    "dynatemp_range": Refusal(_SHAPE, (0,)),
    "xtc_probability": Refusal(_SHAPE, (0,)),
    "dry_multiplier": Refusal(_SHAPE, (0,)),
    "epsilon_cutoff": Refusal(_SHAPE, (0,)),
    "eta_cutoff": Refusal(_SHAPE, (0,)),
    "penalty_alpha": Refusal(_SHAPE, (0,)),
    "guidance_scale": Refusal(_SHAPE, (1,)),
    "no_repeat_ngram_size": Refusal(_SHAPE, (0,)),
    "repetition_detection": Refusal(_SHAPE),
    "samplers": Refusal(_SHAPE),
    "logits_processors": Refusal("no code of a client is run", ([],)),
    "custom_logit_processor": Refusal("no code of a client is run"),
    "custom_params": Refusal("no code of a client is run"),
    "vllm_xargs": Refusal(_INNER, ({},)),
    "do_sample": Refusal("use `temperature`: 0 for the likeliest tokens", (True,)),
    "bad_words_ids": Refusal("use `bad_words`, or `logit_bias` with -100", ([],)),
    "force_words_ids": Refusal("use `structured_outputs`", ([],)),
    "stop_regex": Refusal("use `stop`", ([], "")),
    "no_stop_trim": Refusal("use `include_stop_str_in_output`", (False,)),
    "max_new_tokens": Refusal(_LIMIT),
    "max_length": Refusal(_LIMIT),
    "n_predict": Refusal(_LIMIT),
    "t_max_predict_ms": Refusal(_LIMIT, (0, -1)),
    "n_probs": Refusal("use `logprobs`", (0,)),
    "post_sampling_probs": Refusal("log-probabilities are always the model's own", (False,)),
    "logprob_start_len": Refusal("use `prompt_logprobs`", (-1,)),
    "top_logprobs_num": Refusal("use `top_logprobs`", (0,)),
    "token_ids_logprob": Refusal("use `top_logprobs`"),
    "decoder_input_details": Refusal("use `prompt_logprobs`", (False,)),
    "return_*": Refusal("answers have the documented fields", (False,)),
    "timings_per_token": Refusal("answers have the documented fields", (False,)),
    "response_fields": Refusal("answers have the documented fields", ([],)),
    "watermark": Refusal("texts are not marked", (False,)),
    "truncate": Refusal("prompts are never cut"),
    "truncate_prompt_tokens": Refusal("prompts are never cut"),
    "guided_whitespace_pattern": Refusal(_TEXTS),
    "structured_outputs.whitespace_pattern": Refusal(_TEXTS),
    "structured_outputs.disable_any_whitespace": Refusal(_TEXTS, (False, True)),  # there never is any
    "structured_outputs.disable_additional_properties": Refusal("say it in the schema", (False,)),
    "lora_path": Refusal(_ADAPTER),
    "lora_request": Refusal(_ADAPTER),
    "lora": Refusal(_ADAPTER, ([],)),
    "adapter_id": Refusal(_ADAPTER),
    "cache_salt": Refusal("the prefix cache is not divided by clients"),
    "kv_transfer_params": Refusal(_INNER),
    "session_params": Refusal(_INNER),
    "bootstrap_*": Refusal(_INNER),
    "data_parallel_rank": Refusal(_INNER),
    "prompt_embeds": Refusal("prompts are text, images and videos"),
    "enable_search": Refusal("the server does not search", (False,)),
    "models": Refusal("one model is served", ([],)),
    "plugins": Refusal("there are none", ([],)),
    "transforms": Refusal("prompts are never cut", ([],)),
}

# They steer how a server works, not what it answers; or they do nothing without a field that is refused.
NO_EFFECT = frozenset(
    {
        "user",
        "rid",
        "request_id",
        "cache_prompt",
        "id_slot",
        "min_keep",
        "n_keep",
        "provider",
        "route",
        "session_id",
        "guided_decoding_backend",
        "structured_outputs.disable_fallback",
        "structured_outputs.backend",
        "spaces_between_special_tokens",
        "add_special_tokens",
        "mirostat_tau",
        "mirostat_eta",
        "dynatemp_exponent",
        "xtc_threshold",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "repeat_last_n",
        "stream_options.include_obfuscation",
        "*.cache_control",
    }
)
