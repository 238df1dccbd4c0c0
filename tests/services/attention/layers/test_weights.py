"""A shard reads its own tensors and no others, and what is packed keeps the checkpoint's numbers."""

import pytest
import torch

from kernels import head_linear, linear
from services.attention.layers.weights import load_ends, load_layers
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model import tensor_names, text_weights
from services.model.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny"
    write_random_checkpoint(path, seed=5)
    return path


def spec_bytes(specs) -> int:
    return sum(torch.Size(spec.shape).numel() * spec.dtype.itemsize for spec in specs.values())


@pytest.mark.parametrize("layers", [range(0), range(1), range(1, 3), range(4)], ids=str)
def test_only_the_layers_own_tensors_are_read(folder, layers):
    checkpoint = Checkpoint(folder)
    text = checkpoint.config.text
    loaded = load_layers(checkpoint, layers)
    assert [layer.index for layer in loaded] == list(layers)
    assert [layer.router is not None for layer in loaded] == [text.is_moe(layer) for layer in layers]
    expected = 0
    for layer in layers:
        expected += spec_bytes(tensor_names.attention_specs(text, layer))
        if text.is_moe(layer):
            expected += spec_bytes(tensor_names.router_specs(text, layer))
            expected += spec_bytes(tensor_names.shared_expert_specs(text, layer))
        else:
            expected += spec_bytes(tensor_names.dense_mlp_specs(text, layer))
    assert checkpoint.bytes_read == expected


def test_only_the_ends_are_read(folder):
    checkpoint = Checkpoint(folder)
    ends = load_ends(checkpoint)
    assert checkpoint.bytes_read == spec_bytes(tensor_names.edge_specs(checkpoint.config.text))
    plain = text_weights.edge_weights(checkpoint)
    assert torch.equal(ends.embedding, plain.embedding)
    x = torch.randn(3, checkpoint.config.text.hidden_size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear(x, ends.head), x @ plain.head.float().T)


def test_fused_and_absorbed_weights_are_those_of_the_checkpoint(folder):
    checkpoint = Checkpoint(folder)
    text = checkpoint.config.text
    plain = text_weights.attention_weights(checkpoint, 2)
    packed = load_layers(checkpoint, range(2, 3))[0].attention
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, text.hidden_size, generator=generator)
    expected = torch.cat([x @ plain.q_a.float().T, x @ plain.kv_a.float().T], dim=-1)
    torch.testing.assert_close(linear(x, packed.qkv_a), expected)

    # q_nope . k_nope of the expanded form is q_absorbed . latent of the other; likewise for the values.
    latent = torch.randn(5, text.kv_lora_rank, generator=generator)
    q_nope = torch.randn(5, text.num_attention_heads, text.qk_nope_head_dim, generator=generator)
    widths = [text.qk_nope_head_dim, text.v_head_dim]
    keys, values = linear(latent, packed.kv_b).view(5, text.num_attention_heads, -1).split(widths, dim=-1)
    scores = torch.einsum("thl,tl->th", head_linear(q_nope, packed.key_absorbed), latent)
    torch.testing.assert_close(scores, (q_nope * keys).sum(-1), atol=1e-4, rtol=1e-4)
    every_head = latent[:, None].expand(-1, text.num_attention_heads, -1).contiguous()
    torch.testing.assert_close(head_linear(every_head, packed.value_up), values)
