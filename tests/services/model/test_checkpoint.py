import json
import os
import shutil

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from services.model.checkpoint import Checkpoint
from services.runtime.errors import CheckpointError

Q_A = "language_model.model.layers.2.self_attn.q_a_proj.weight"
BIAS = "language_model.model.layers.2.mlp.gate.e_score_correction_bias"
LAYER_2 = "model-00003-of-000006.safetensors"
INDEX = "model.safetensors.index.json"


def test_every_tensor_is_what_the_safetensors_library_reads(checkpoint_folder):
    checkpoint = Checkpoint(checkpoint_folder)
    seen = 0
    for file in sorted(checkpoint_folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as theirs:
            for name in theirs.keys():  # noqa: SIM118, it is no dict
                expected = theirs.get_tensor(name)
                ours = checkpoint.tensor(name, shape=tuple(expected.shape), dtype=expected.dtype)
                assert torch.equal(ours, expected), name
                assert checkpoint.file_of(name) == file
                seen += expected.nbytes
    assert checkpoint.bytes_read == seen
    assert seen == json.loads((checkpoint_folder / INDEX).read_text())["metadata"]["total_size"]


def resident_bytes():
    return psutil.Process().memory_info().rss


def test_only_touched_pages_are_read(checkpoint_folder, damaged):
    """Only the parts of a sparse file of 2 GiB that are read become resident."""
    rows = 1 << 16
    header = json.dumps({"big": {"dtype": "BF16", "shape": [rows, 1 << 14], "data_offsets": [0, rows << 15]}}).encode()
    with (damaged / "big.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (rows << 15))
    edit_index(damaged, lambda index: index["weight_map"].update(big="big.safetensors"))
    before = resident_bytes()
    tensor = Checkpoint(damaged).tensor("big", shape=(rows, 1 << 14), dtype=torch.bfloat16)
    assert resident_bytes() - before < 16 << 20
    assert tensor[:256].sum() == 0
    assert resident_bytes() - before < 48 << 20


def test_writing_to_a_tensor_leaves_the_file_alone(damaged):
    before = (damaged / LAYER_2).read_bytes()
    tensor = Checkpoint(damaged).tensor(Q_A)
    tensor.zero_()
    assert (damaged / LAYER_2).read_bytes() == before


def test_a_tensor_outlives_its_checkpoint(checkpoint_folder):
    tensor = Checkpoint(checkpoint_folder).tensor(Q_A)
    assert tensor.float().std() > 0.01


@pytest.mark.parametrize(
    "expectation, message",
    [
        pytest.param({"shape": (48, 64)}, r"expected shape \[48, 64\], found \[48, 128\]", id="shape"),
        pytest.param({"dtype": torch.float32}, "expected dtype F32, found BF16", id="dtype"),
        pytest.param({"dtype": torch.int32}, "expected dtype I32, found BF16", id="integer"),
    ],
)
def test_expectations_are_checked(checkpoint_folder, expectation, message):
    with pytest.raises(CheckpointError, match=message) as error:
        Checkpoint(checkpoint_folder).tensor(Q_A, **expectation)
    assert Q_A in error.value.message
    assert str(checkpoint_folder / LAYER_2) in error.value.message


def test_an_unknown_name(checkpoint_folder):
    checkpoint = Checkpoint(checkpoint_folder)
    assert not checkpoint.has("nonsense")
    with pytest.raises(CheckpointError, match="tensor nonsense: expected in the index of"):
        checkpoint.tensor("nonsense")


def test_names_without_the_wrappers_prefix(damaged):
    expected = Checkpoint(damaged).tensor(Q_A).clone()
    for file in damaged.glob("*.safetensors"):
        file.unlink()
    (damaged / INDEX).unlink()
    save_file({Q_A.removeprefix("language_model."): expected}, damaged / "model.safetensors")
    checkpoint = Checkpoint(damaged)
    assert checkpoint.has(Q_A)
    assert torch.equal(checkpoint.tensor(Q_A), expected)
    assert len(checkpoint.digest()) == 32


def test_the_digest_sees_config_index_header_and_content(checkpoint_folder, damaged):
    original = Checkpoint(checkpoint_folder).digest()
    assert len(original) == 32
    assert Checkpoint(damaged).digest() == original
    found = {original}
    changes = {
        "config.json": lambda content: content + b"\n",
        INDEX: lambda content: content + b"\n",
        LAYER_2: lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    }
    for name, change in changes.items():
        before = (damaged / name).read_bytes()
        (damaged / name).write_bytes(change(before))
        found.add(Checkpoint(damaged).digest())
        (damaged / name).write_bytes(before)
    # A renamed tensor with unchanged bytes, which shows only in the header.
    content = (damaged / LAYER_2).read_bytes()
    (damaged / LAYER_2).write_bytes(content.replace(b"layers.2.mlp.gate.weight", b"layers.2.mlp.gote.weight", 1))
    found.add(Checkpoint(damaged).digest())
    assert len(found) == 5


@pytest.mark.parametrize("number", [1, 3, 6])
def test_the_size_of_every_file_is_checked_before_one_is_read(damaged, number):
    file = damaged / f"model-{number:05}-of-000006.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(CheckpointError) as error:
        Checkpoint(damaged)
    assert error.value.message.startswith(str(file))
    assert error.value.message.endswith(
        f"expected {size} bytes as its header says, found {size - 1} bytes; it is truncated"
    )


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param(lambda i: i.pop("weight_map"), "field weight_map: expected a map", id="no-map"),
        pytest.param(lambda i: i.update(weight_map=[]), "field weight_map: expected a map", id="list"),
        pytest.param(lambda i: i["weight_map"].update(x="../x"), r"plain file names, found '../x'", id="path"),
        pytest.param(lambda i: i["weight_map"].update(x="/etc/passwd"), "plain file names", id="absolute"),
        pytest.param(lambda i: i["weight_map"].update(x=".."), "plain file names", id="parent"),
        pytest.param(lambda i: i["weight_map"].update(x="y"), "expected a file that .* names, found none", id="gone"),
    ],
)
def test_a_damaged_index(damaged, change, message):
    edit_index(damaged, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(damaged)


def test_a_tensor_in_another_file_than_the_index_says(damaged):
    edit_index(damaged, lambda index: index["weight_map"].update({Q_A: "model-00001-of-000006.safetensors"}))
    with pytest.raises(CheckpointError, match=rf"expected in .*00001-of.* as the index says, found it in {LAYER_2}"):
        Checkpoint(damaged).tensor(Q_A)


def test_a_tensor_in_no_file(damaged):
    edit_index(damaged, lambda index: index["weight_map"].update(ghost=LAYER_2))
    with pytest.raises(CheckpointError, match=r"tensor ghost: .* found it in no file"):
        Checkpoint(damaged).tensor("ghost")


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 300_000])
def test_a_truncated_file(damaged, kept):
    file = damaged / LAYER_2
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"{file}: .*expected .*found .*{kept} bytes"):
        Checkpoint(damaged).tensor(Q_A)


def test_a_file_with_more_than_its_header_says(damaged):
    with (damaged / LAYER_2).open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match=r"expected \d+ bytes as its header says, found \d+"):
        Checkpoint(damaged).tensor(Q_A)


def put(name, **fields):
    return lambda header: header[name].update(fields)


def shift(name, by):
    return lambda header: header[name].update(data_offsets=[offset + by for offset in header[name]["data_offsets"]])


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param(put(Q_A, dtype="F16"), "expected dtype BF16, found F16", id="other-dtype"),
        pytest.param(put(Q_A, dtype="I16"), "expected dtype BF16, found I16", id="foreign-dtype"),
        pytest.param(put(Q_A, dtype=3), "expected whole numbers", id="dtype-no-word"),
        pytest.param(put(Q_A, dtype="F32"), "expected 24576 bytes for F32", id="dtype-and-size-differ"),
        pytest.param(put(Q_A, shape=[48, 127]), "expected 12192 bytes for BF16", id="shape-and-size-differ"),
        pytest.param(put(Q_A, shape=[-48, -128]), "expected whole numbers", id="negative-shape"),
        pytest.param(put(Q_A, shape=[48.0, 128]), "expected whole numbers", id="shape-of-fractions"),
        pytest.param(put(Q_A, data_offsets=[0]), "expected dtype, shape and data_offsets", id="one-offset"),
        pytest.param(lambda h: h[Q_A].pop("shape"), "expected dtype, shape and data_offsets", id="no-shape"),
        pytest.param(lambda h: h.update({Q_A: 5}), "expected dtype, shape and data_offsets", id="a-number"),
        pytest.param(shift(Q_A, 64), "leaves a gap before it", id="gap"),
        pytest.param(shift(Q_A, -64), "overlaps the tensor before it", id="overlap"),
        pytest.param(shift(Q_A, 1 << 40), "data offset", id="out-of-range"),
        pytest.param(lambda h: h.pop(Q_A), "leaves a gap before it", id="entry-missing"),
    ],
)
def test_a_damaged_header(damaged, edit_header, change, message):
    edit_header(damaged / LAYER_2, change)
    with pytest.raises(CheckpointError, match=message) as error:
        Checkpoint(damaged).tensor(Q_A, dtype=torch.bfloat16)
    assert str(damaged / LAYER_2) in error.value.message


def test_one_entry_shortened_at_the_end_of_the_file(damaged, edit_header):
    def cut_last(header):
        last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
        begin, end = header[last]["data_offsets"]
        header[last].update(data_offsets=[begin, end + 8], shape=[4])

    edit_header(damaged / LAYER_2, cut_last)
    with pytest.raises(CheckpointError, match="it is truncated"):
        Checkpoint(damaged).tensor(Q_A)


@pytest.mark.parametrize(
    "header, message",
    [
        pytest.param(b"not json, but of some length", "expected a JSON header", id="no-json"),
        pytest.param(b"[1, 2]", "expected a JSON object as header", id="list"),
        pytest.param(b'{"a": 1, "a": 2}', "tensor a: expected dtype, shape and data_offsets, found 2", id="twice"),
        pytest.param(b"[" * 100_000, "expected a JSON header", id="deep"),
    ],
)
def test_a_header_that_is_none(damaged, header, message):
    (damaged / LAYER_2).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(damaged).tensor(Q_A)


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="expected a checkpoint folder, found none"):
        Checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="expected a checkpoint folder, found a file"):
        Checkpoint(tmp_path / "file")


def test_no_weights_at_all(damaged):
    shutil.copy(damaged / "config.json", damaged.parent)
    with pytest.raises(CheckpointError, match=r"index.json: expected a readable file"):
        Checkpoint(damaged.parent)
