import base64
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from services.checkpoint.config import load_config
from services.local.random_checkpoint import weights as random_weights
from services.local.random_checkpoint.__main__ import main
from services.local.random_checkpoint.dims import bench_1b_dims, tiny_dims
from services.local.random_checkpoint.vocabulary import small_vocabulary
from services.local.random_checkpoint.weights import RandomWeights
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model.tensor_names import EMBEDDING, edge_specs, text_specs
from tests.reference.model import ReferenceModel, unpack


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "tiny"
    write_random_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def tensors(folder) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118, it is no dict
    return found


def test_the_folder_has_the_released_files(folder):
    layers, edges, vision = 4, 1, 1
    weights = [f"model-{i:05d}-of-000006.safetensors" for i in range(1, 1 + layers + edges + vision)]
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [
            *weights,
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "preprocessor_config.json",
            "tiktoken.model",
            "tokenizer_config.json",
        ]
    )
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000


def test_the_index_is_true(folder, tensors):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    # An MoE layer has 9 + 2 + 3 tensors and 9 per expert, a dense one 12, the edges 3, the tower 12 per block + 5 + 6.
    assert len(tensors) == 3 * (9 + 2 + 3 + 9 * 16) + 12 + 3 + (2 * 12 + 5 + 6)


def test_dtypes_are_the_released_ones(tensors):
    endings = {"_packed": torch.int32, "_shape": torch.int32, "correction_bias": torch.float32}
    for name, tensor in tensors.items():
        expected = next((dtype for ending, dtype in endings.items() if name.endswith(ending)), torch.bfloat16)
        assert tensor.dtype == expected, name


def test_weight_shape_tells_out_and_in(tensors):
    prefix = "language_model.model.layers.1.mlp.experts.0"
    assert tensors[f"{prefix}.gate_proj.weight_shape"].tolist() == [64, 128]
    assert tensors[f"{prefix}.down_proj.weight_shape"].tolist() == [128, 64]


def test_the_configuration_is_that_of_the_dims(folder):
    config = load_config(folder)
    assert (config.text, config.vision) == (tiny_dims().text, tiny_dims().vision)
    values = json.loads((folder / "config.json").read_text())
    ids = [values[f"{name}_token_id"] for name in ("bos", "eos", "pad", "media_placeholder")]
    assert ids == [320, 322, 575, 341]
    assert (config.stop_ids, config.media_placeholder_token_id) == ({322}, 341)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 322, "max_length": 4096}


def test_quantization_config_is_the_released_one(folder, released):
    expected = json.loads((released / "config.json").read_text())["text_config"]
    written = json.loads((folder / "config.json").read_text())["text_config"]
    assert written["quantization_config"] == expected["quantization_config"]
    assert written.keys() <= expected.keys()


def test_every_group_has_a_minus_eight_and_a_short_scale(tensors):
    for name in [name for name in tensors if name.endswith("weight_packed")]:
        scale = tensors[name.replace("_packed", "_scale")]
        values = (unpack(tensors[name], torch.ones_like(scale))).view(*scale.shape, 32)
        assert (values.amin(-1) == -8).all()
        mantissa, _ = torch.frexp(scale.float())
        assert torch.equal(mantissa * 32, (mantissa * 32).round())
        # This makes a weight exact in bf16, and its scale in fp16, which Q4_0 uses.
        exact = values * scale.float().unsqueeze(-1)
        assert torch.equal(exact.to(torch.bfloat16).float(), exact)
        assert torch.equal(scale.to(torch.float16).float(), scale.float())


def test_the_seed_decides_everything(folder, tmp_path):
    write_random_checkpoint(tmp_path / "same")
    write_random_checkpoint(tmp_path / "other", seed=1)
    for file in folder.iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
        differs = (tmp_path / "other" / file.name).read_bytes() != file.read_bytes()
        assert differs == (file.suffix == ".safetensors")


def test_nothing_is_left_of_a_failure(tmp_path):
    text = dataclasses.replace(tiny_dims().text, vocab_size=500)
    with pytest.raises(ValueError, match="244 tokens are too few"):
        write_random_checkpoint(tmp_path / "deep" / "small", dims=dataclasses.replace(tiny_dims(), text=text))
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists already"):
        write_random_checkpoint(tmp_path / "mine")
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "mine")])
    assert exit_.value.code == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_the_command_writes_a_folder(tmp_path, capsys):
    main([str(tmp_path / "new"), "--preset", "tiny", "--seed", "3"])
    assert capsys.readouterr().out == f"{tmp_path / 'new'}\n"
    assert load_config(tmp_path / "new").text == tiny_dims().text


@pytest.mark.parametrize("base", [256, 257, 320, 31744])
def test_small_vocabularies_are_byte_pair_encodings(base):
    tokens = small_vocabulary(base)
    assert len(set(tokens)) == base
    known = set(tokens[:256])
    assert known == {bytes([byte]) for byte in range(256)}
    for token in tokens[256:]:
        assert any(token[:cut] in known and token[cut:] in known for cut in range(1, len(token))), token
        known.add(token)


def test_the_tokenizer_files_are_as_released(folder, released):
    lines = [(f / "tiktoken.model").read_text().splitlines() for f in (folder, released)]
    assert lines[0][:257] == lines[1][:257]
    assert [int(line.split()[1]) for line in lines[0]] == list(range(320))
    assert all(base64.b64decode(line.split()[0], validate=True) for line in lines[0])
    written, expected = (json.loads((f / "tokenizer_config.json").read_text()) for f in (folder, released))
    shifted = {str(int(id_) - 163584 + 320): token for id_, token in expected.pop("added_tokens_decoder").items()}
    assert written.pop("added_tokens_decoder") == shifted
    expected.pop("auto_map")  # names code that is not written
    assert written == expected


def test_the_real_vocabulary_is_copied(tmp_path, released):
    text = dataclasses.replace(tiny_dims().text, hidden_size=32, num_hidden_layers=1)
    dims = dataclasses.replace(tiny_dims(), text=text, vision=None)
    write_random_checkpoint(tmp_path / "real", dims=dims, vocabulary="real", vocabulary_from=released)
    config = load_config(tmp_path / "real")
    assert config.text.vocab_size == 163840
    assert (config.stop_ids, config.media_placeholder_token_id) == ({163586}, 163605)
    for name in ("tiktoken.model", "tokenizer_config.json"):
        assert (tmp_path / "real" / name).read_bytes() == (released / name).read_bytes()
    assert len(ReferenceModel(tmp_path / "real").generate([1, 2, 3], 4)) == 4


def test_the_benchmark_has_the_agreed_size():
    text = bench_1b_dims().text
    # A packed word has eight weights; scales are not counted.
    sizes = {s.name: math.prod(s.shape) * (8 if s.dtype == torch.int32 else 1) for s in text_specs(text)}
    sizes = {name: size for name, size in sizes.items() if not name.endswith("weight_scale")}
    total, routed = sum(sizes.values()), sum(size for name, size in sizes.items() if ".mlp.experts." in name)
    assert total == pytest.approx(1.276e9, rel=1e-3)
    active = total - sizes[EMBEDDING] - routed * (64 - 8) // 64
    assert active == pytest.approx(273e6, rel=0.01)


def test_large_tensors_come_in_bounded_pieces(monkeypatch):
    dims = tiny_dims()
    spec = edge_specs(dims.text)["head"]
    (whole,) = RandomWeights(dims, 0, [0.0] * 576).pieces(spec)
    monkeypatch.setattr(random_weights, "PIECE_NUMBERS", 100 * 128)
    pieces = list(RandomWeights(dims, 0, [0.0] * 576).pieces(spec))
    assert [len(piece) for piece in pieces] == [100] * 5 + [76]
    assert torch.cat(pieces).shape == whole.shape
