"""The reference equals `transformers`' own Kimi K2.5/K2.6 text model on random weights.

Compared with transformers 5.23, model type `kimi_k25`, whose text model is its `deepseek_v3`; the routed experts are
dequantised (exactly: scales have five significant bits) and handed over as dense weights. Differences found:

- Latent norms: transformers builds them with eps 1e-6, as the released code; so does the reference by default.
- Experts outside the best groups: transformers masks their score with -inf, the released code with 0. With the
  release's single group neither masks anything; the second configuration here has positive scores, where both agree.
- bfloat16: transformers also rounds cos, sin and each expert's weighted output; the reference keeps these in fp32.
  A rounding can change a chosen expert, and then everything after it, so that bf16 logits of random weights cannot be
  compared number by number. What is compared is the distance of both from the fp32 logits.
"""

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from transformers.models.kimi_k25 import Kimi_K25ForConditionalGeneration

from services.local.random_checkpoint.dims import tiny_dims
from services.local.random_checkpoint.write import write_random_checkpoint
from tests.reference.model import ReferenceModel, read_weights

# Absolute, on logits of standard deviation 3 (largest about 15): sums in another order, nothing else.
TOLERANCE = 1e-3
CONFIGURATIONS = {
    "as-released": {},
    "groups-two-shared-two-dense": {
        "num_attention_heads": 3,
        "v_head_dim": 24,
        "qk_nope_head_dim": 40,
        "first_k_dense_replace": 2,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "rope_theta": 10000.0,
    },
}
# YaRN's original length is 128 in both.
PROMPT_LENGTHS = [1, 2, 37, 128, 129, 300]


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def checkpoint(request, tmp_path_factory) -> Path:
    dims = tiny_dims()
    text = dataclasses.replace(dims.text, **CONFIGURATIONS[request.param])
    folder = tmp_path_factory.mktemp("reference") / request.param
    write_random_checkpoint(folder, dims=dataclasses.replace(dims, text=text), seed=len(request.param))
    return folder


@pytest.fixture(scope="module")
def models(checkpoint):
    return ReferenceModel(checkpoint), transformers_model(checkpoint, torch.float32)


def transformers_model(folder: Path, dtype: torch.dtype) -> Kimi_K25ForConditionalGeneration:
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    # Before anything is loaded: it is built in the checkpoint's bf16, which would round the unpacked experts.
    model = Kimi_K25ForConditionalGeneration(config).to(dtype).eval()
    weights = read_weights(folder, torch.float32)
    text = config.text_config
    for layer in range(text.first_k_dense_replace, text.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        projections = {
            name: torch.stack(
                [weights.pop(f"{prefix}.{expert}.{name}_proj.weight") for expert in range(text.n_routed_experts)]
            )
            for name in ("gate", "up", "down")
        }
        weights[f"{prefix}.gate_up_proj"] = torch.cat([projections["gate"], projections["up"]], dim=1)
        weights[f"{prefix}.down_proj"] = projections["down"]
    renamed = {
        f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name: tensor
        for name, tensor in weights.items()
    }
    outcome = model.load_state_dict(renamed, strict=False)
    assert outcome.unexpected_keys == []
    assert all("vision" in name or "mm_proj" in name or "multi_modal" in name for name in outcome.missing_keys)
    for name, module in model.named_modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias = renamed[f"{name}.e_score_correction_bias"]
    return model


def prompt(num_tokens: int) -> list[int]:
    return torch.randint(320, (num_tokens,), generator=torch.Generator().manual_seed(num_tokens)).tolist()


def their_logits(model: Kimi_K25ForConditionalGeneration, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_ids])).logits[0].float()


@pytest.mark.parametrize("num_tokens", PROMPT_LENGTHS)
def test_logits_are_equal(models, num_tokens):
    ours, theirs = models
    expected = their_logits(theirs, prompt(num_tokens))
    assert expected.std() > 1
    torch.testing.assert_close(ours.logits(prompt(num_tokens)), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("num_tokens", PROMPT_LENGTHS)
def test_greedy_tokens_are_identical(models, num_tokens):
    ours, theirs = models
    ids = prompt(num_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own advice about generation settings
        out = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert ours.generate(ids, 32) == out[0, len(ids) :].tolist()


def test_bfloat16_is_as_close_to_float32(checkpoint, models):
    ours, theirs = ReferenceModel(checkpoint, dtype=torch.bfloat16), transformers_model(checkpoint, torch.bfloat16)
    ids = prompt(100)
    exact = models[0].logits(ids)
    our_error, their_error = ((m - exact).square().mean().sqrt() for m in (ours.logits(ids), their_logits(theirs, ids)))
    assert 0 < our_error < 1.3 * their_error


def test_latent_eps_is_the_released_one(checkpoint):
    # Latents of size 2e-3 make mean(x^2) as small as eps, so that 1e-6 and 1e-5 (vLLM, SGLang) differ widely.
    ours, theirs = ReferenceModel(checkpoint), transformers_model(checkpoint, torch.float32)
    for weights in (ours.weights, dict(theirs.named_parameters())):
        for name in (n for n in weights if n.endswith(("q_a_proj.weight", "kv_a_proj_with_mqa.weight"))):
            weights[name].data.mul_(2e-3)
    ids = prompt(64)
    expected = their_logits(theirs, ids)
    torch.testing.assert_close(ours.logits(ids), expected, atol=TOLERANCE, rtol=0)
    ours.latent_norm_eps = 1e-5
    assert (ours.logits(ids) - expected).abs().max() > 100 * TOLERANCE
