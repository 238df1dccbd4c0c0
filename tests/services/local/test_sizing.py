"""Sizes that follow from the machine's memory and the checkpoint's size."""

import json

import pytest

from services.checkpoint.kv_room import MIN_BLOCKS
from services.checkpoint.memory import Room
from services.local import sizing
from services.local.sizing import MIN_STORE_BYTES, sizes_for

GIB = 2**30
# Bytes of latent KV for 64 tokens of K2.6 in bfloat16: 61 layers of 576 numbers.
BLOCK_BYTES = 64 * 61 * 576 * 2


@pytest.fixture
def checkpoint(tmp_path):
    text = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61, "max_position_embeddings": 262_144}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    with (tmp_path / "model-1.safetensors").open("wb") as file:
        file.truncate(100 * GIB)  # sparse
    return tmp_path


def sizes(checkpoint, free_gib, monkeypatch, **choices):
    monkeypatch.setattr(sizing, "find_room", lambda: Room(free_gib * GIB, ""))
    return sizes_for(checkpoint, **{"num_attention": 2, "attention_shards": 1, "dtype_bytes": 2, **choices})


def test_what_the_weights_leave_is_shared(checkpoint, monkeypatch):
    found = sizes(checkpoint, 180, monkeypatch)
    assert found.store_bytes == 10 * GIB
    assert found.num_blocks == 10 * GIB // BLOCK_BYTES
    assert found.context_tokens == 262_144
    assert "152,768 tokens in each attention process (a context has 262,144), 10,240 MiB for the store" in str(found)


def test_no_more_than_four_contexts(checkpoint, monkeypatch):
    assert sizes(checkpoint, 10_000, monkeypatch).num_blocks == 4 * 262_144 // 64


def test_a_shard_holds_its_layers_only(checkpoint, monkeypatch):
    one, two = (sizes(checkpoint, 180, monkeypatch, attention_shards=shards).num_blocks for shards in (1, 2))
    assert two == pytest.approx(one * 61 / 31, rel=0.001)


def test_a_machine_without_room_gets_the_least(checkpoint, monkeypatch):
    found = sizes(checkpoint, 16, monkeypatch)
    assert (found.num_blocks, found.store_bytes) == (MIN_BLOCKS, MIN_STORE_BYTES)


@pytest.mark.parametrize("text", ["", "[]", '{"text_config": 3}', "{}"])
def test_a_config_that_says_nothing(tmp_path, monkeypatch, text):
    (tmp_path / "config.json").write_text(text)
    assert sizes(tmp_path, 1, monkeypatch).num_blocks >= MIN_BLOCKS
