"""The Gluon form of `mla_decode`: its arithmetic on the CPU; on a Hopper GPU compared with the Triton form."""

import pytest
import torch

from kernels.gpu import attention_decode, attention_decode_hopper
from kernels.gpu.attention_decode import HOPPER_TILES, DecodeTiles, decode_tiles, hopper_tiles
from tests.kernels.checks import assert_near
from tests.kernels.gluon import OnCpu
from tests.kernels.test_attention import filled_cache
from tests.kernels.triton_device import DEVICE, moved

ON_HOPPER = DEVICE == "cuda" and torch.cuda.get_device_capability()[0] == 9
SCALE = 0.1446


def inputs(lens, block_tokens=64):
    cache, tables = filled_cache(len(lens), lens, block_tokens, 576, torch.bfloat16)
    q = torch.randn(len(lens), 64, 576).bfloat16()
    return q[..., :512], q[..., 512:], cache, tables, torch.tensor(lens, dtype=torch.int32)


@pytest.fixture
def gluon_on_cpu(monkeypatch):
    """Make `mla_decode` use the Gluon form."""
    monkeypatch.setattr(attention_decode_hopper, "device_class", lambda tensor: "sm_90")
    kernel = OnCpu(attention_decode_hopper.mla_decode_hopper_kernel)
    monkeypatch.setattr(attention_decode_hopper, "mla_decode_hopper_kernel", kernel)


def splits(monkeypatch, split_tiles, max_splits):
    tiles = DecodeTiles(64, 64, 8, 2, split_tiles, max_splits)
    monkeypatch.setattr(attention_decode, "hopper_tiles", lambda rows: tiles)


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernel itself runs here")
class TestOnCpu:
    @pytest.mark.parametrize("lens", [[1], [64, 0], [65], [200, 63], [64 * 9 + 1]], ids=str)
    @pytest.mark.slow
    def test_it_is_the_reference(self, gluon_on_cpu, oracle, lens):
        arguments = inputs(lens)
        assert_near(attention_decode.mla_decode(*arguments, SCALE), oracle.mla_decode(*arguments, SCALE))

    @pytest.mark.parametrize("split_tiles, max_splits", [(2, 4), (1, 2), (8, 8)])
    def test_splits_of_several_tiles(self, gluon_on_cpu, monkeypatch, oracle, split_tiles, max_splits):
        splits(monkeypatch, split_tiles, max_splits)
        arguments = inputs([64 * 5 + 3])
        assert_near(attention_decode.mla_decode(*arguments, SCALE), oracle.mla_decode(*arguments, SCALE))

    @pytest.mark.slow
    def test_one_layer_of_a_cache_of_many_and_heads_apart(self, gluon_on_cpu, oracle):
        """The engine's layouts: a layer's blocks are apart in memory, and absorbed queries are ordered by head."""
        q_latent, q_rope, cache, tables, lens = inputs([130, 7], block_tokens=128)
        layers = torch.full((len(cache), 3, *cache.shape[1:]), float("nan")).bfloat16()
        layers[:, 1] = cache
        by_head = q_latent.transpose(0, 1).contiguous().transpose(0, 1)
        actual = attention_decode.mla_decode(by_head, q_rope, layers[:, 1], tables, lens, SCALE)
        assert_near(actual, oracle.mla_decode(q_latent, q_rope, cache, tables, lens, SCALE))

    @pytest.mark.slow
    def test_a_number_that_is_none_stays_in_its_row(self, gluon_on_cpu):
        q_latent, q_rope, cache, tables, lens = inputs([40, 40])
        cache[tables[1, 0], 3] = float("nan")
        out = attention_decode.mla_decode(q_latent, q_rope, cache, tables, lens, SCALE)
        assert out[0].isfinite().all() and out[1].isnan().all()

    def test_other_sizes_take_the_triton_form(self, monkeypatch):
        monkeypatch.setattr(attention_decode_hopper, "device_class", lambda tensor: "sm_90")
        q_latent, q_rope, cache, *_ = inputs([3])
        takes = attention_decode_hopper.takes
        assert takes(q_latent, q_rope, cache)
        assert not takes(q_latent.float(), q_rope.float(), cache.float())
        assert not takes(q_latent[:, :32], q_rope[:, :32], cache)
        assert not takes(q_latent, q_rope, cache[:, :32])
        assert not takes(q_latent, torch.empty(1, 64, 65).bfloat16()[..., :64], cache)  # heads are 130 bytes apart


def test_every_number_of_rows_has_its_class():
    assert [hopper_tiles(rows) for rows in (1, 3, 64, 512)] == list(HOPPER_TILES.values())


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 65])
def test_on_hopper_it_is_the_triton_form(oracle, rows):
    lens = [1, 4096, 64, 65, 0, 9_000, 127, 20_000, *range(1000, 1057)][-rows:]
    arguments = moved(*inputs(lens))
    actual = attention_decode.mla_decode(*arguments, SCALE)
    triton_form = attention_decode.mla_decode(*arguments, SCALE, decode_tiles(64, 512, torch.bfloat16))
    assert_near(actual, triton_form)
    assert_near(actual, oracle.mla_decode(*arguments, SCALE))
