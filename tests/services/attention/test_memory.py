"""Blocks of latent KV by the memory that an attention process has."""

import pytest

from services.attention import memory
from services.attention.assembly import Assembly
from services.attention.layers.frames import FrameKind, frame
from services.attention.settings import AttentionSettings
from services.checkpoint.kv_room import MIN_BLOCKS, MOST_CONTEXTS
from services.checkpoint.memory import Room
from services.model import memory as model_memory
from services.model.checkpoint import Checkpoint
from services.runtime.errors import CheckpointError

MIB = 1 << 20


@pytest.fixture
def assembly(tiny_checkpoint, monkeypatch):
    """Return a function that assembles a shard where `mib` of memory are left."""

    def assemble(mib, shard=0, **changes):
        room = Room(int(mib * MIB), f"its control group has {mib} MiB left")
        for module in (memory, model_memory):
            monkeypatch.setattr(module, "device_room", lambda device: room)
        shards = {"shard": shard, "num_shards": 2, "next_shards": "h:1" if shard == 0 else ""}
        fixed = {"listen": "h:1", "model": tiny_checkpoint, "role": "decode", "block_tokens": 16, "dtype": "float32"}
        return Assembly(AttentionSettings(**fixed, **shards, **changes))

    return assemble


def weights_mib(assembly):
    """Of the engine, whose shard is the largest: it has embedding and head."""
    needs = memory._weight_bytes(assembly._settings, assembly._config, 0, assembly._layout)
    return sum(needs.values()) / MIB


def test_half_of_what_the_weights_leave(assembly, tiny_checkpoint):
    weights = weights_mib(assembly(10_000))
    layers = Checkpoint(tiny_checkpoint).config.text.num_hidden_layers
    block = 16 * -(-layers // 2) * Checkpoint(tiny_checkpoint).config.text.latent_dim * 4
    small, large = assembly(weights + 6), assembly(weights + 12)
    assert small._num_blocks == 3 * MIB // block
    assert large._num_blocks == pytest.approx(2 * small._num_blocks, abs=1)


def test_no_more_than_the_model_can_use(assembly):
    found = assembly(1 << 20)
    assert found._num_blocks == MOST_CONTEXTS * found._config.max_position_embeddings // 16


def test_what_the_settings_say_wins(assembly):
    assert assembly(10_000, num_blocks=7)._num_blocks == 7


def test_too_little_memory_is_said_with_both_figures(assembly):
    with pytest.raises(CheckpointError, match=r"attention shard 0 of 2 needs .* latent KV .* has 1 MiB left"):
        assembly(1)


async def test_a_further_shard_with_slightly_less_room_still_takes_the_engine(assembly):
    """Equal limits, a few megabytes more in use: the engine's blocks have to fit into the further shard."""
    weights = weights_mib(assembly(10_000))
    engine = assembly(weights + 8)
    assert engine._num_blocks > MIN_BLOCKS
    hello = frame(FrameKind.HELLO, 0, engine._layout.hello(1, engine._num_blocks))
    assert assembly(weights + 7.8, shard=1).further_shard().servicer._refusal(hello) == ""
    refusal = assembly(weights + 5, shard=1).further_shard().servicer._refusal(hello)
    assert refusal.startswith(f"the engine has {engine._num_blocks} blocks, this shard has room for ")
