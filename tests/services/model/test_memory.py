"""The memory that a part of the model needs, and the check of available memory."""

from pathlib import Path

import psutil
import pytest

from services.attention.layers.weights import load_layers
from services.checkpoint import memory
from services.checkpoint.memory import find_room
from services.model.checkpoint import Checkpoint
from services.model.device import CPU
from services.model.expert_shard import load_expert_shard
from services.model.memory import check_room, expert_bytes, layer_bytes
from services.runtime.errors import CheckpointError

GIB = 1 << 30


def group(folder, limit, used, cache, version=2):
    folder.mkdir(parents=True, exist_ok=True)
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    limit_file, usage_file = names[version]
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / usage_file).write_text(f"{used}\n")
    prefix = "total_" if version == 1 else ""
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {cache}\n{prefix}active_file 7\n")


def test_the_machine_alone(tmp_path):
    room = find_room(tmp_path / "none", tmp_path)
    assert room.num_bytes <= psutil.virtual_memory().total
    assert room.limit.startswith("this machine has ")


@pytest.mark.parametrize(
    "lines, folders, expected",
    [
        pytest.param("0::/pod/box\n", {"pod/box": (1000, 400, 93)}, 700, id="version-2"),
        pytest.param("0::/pod/box\n", {"pod/box": ("max", 400, 0), "pod": (900, 500, 0)}, 407, id="of-the-pod"),
        pytest.param("0::/pod/box\n", {"pod/box": (900, 100, 0), "pod": (5000, 500, 0)}, 807, id="the-smallest"),
        # A container sees its own group as the root of the mount, but the host's path.
        pytest.param("0::/host/path\n", {".": (1000, 400, 0)}, 607, id="container"),
        pytest.param("5:cpu:/a\n4:memory:/a\n", {"memory/a": (1000, 400, 0)}, 607, id="version-1"),
    ],
)
def test_control_groups(tmp_path, lines, folders, expected):
    for path, numbers in folders.items():
        group(tmp_path / "cgroup" / path, *numbers, version=1 if "memory" in path else 2)
    (tmp_path / "self").write_text(lines)
    room = find_room(tmp_path / "self", tmp_path / "cgroup")
    assert room.num_bytes == expected
    assert "control group" in room.limit


def test_a_group_without_a_limit(tmp_path):
    group(tmp_path / "memory" / "a", 0x7FFFFFFFFFFFF000, 5, 0, version=1)
    (tmp_path / "self").write_text("4:memory:/a\n")
    assert find_room(tmp_path / "self", tmp_path).limit.startswith("this machine")


def test_the_sentence_has_both_figures(tmp_path, monkeypatch):
    group(tmp_path / "box", 4 * GIB, 3 * GIB, 0)
    (tmp_path / "self").write_text("0::/box\n")
    room = find_room(tmp_path / "self", tmp_path)
    monkeypatch.setattr("services.model.memory.find_room", lambda: room)
    check_room("expert shard 0 of 2", {"experts": GIB // 2}, CPU)
    with pytest.raises(CheckpointError) as error:
        check_room("expert shard 0 of 2", {"experts": 12 * GIB, "latent KV": GIB // 2}, CPU)
    assert error.value.message == (
        "expert shard 0 of 2 needs 12.5 GiB of memory (experts 12.0 GiB, latent KV 0.5 GiB), but its control group "
        "(memory.max) has 1.0 GiB of its 4.0 GiB left"
    )


def test_needs_are_what_is_packed(checkpoint_folder: Path):
    checkpoint = Checkpoint(checkpoint_folder)
    text = checkpoint.config.text
    shard = load_expert_shard(checkpoint, range(5))
    assert shard.nbytes == expert_bytes(text, 5)
    packed = 0
    for layer in load_layers(checkpoint, range(text.num_hidden_layers)):
        parts = [*vars(layer.attention).values(), *vars(layer.mlp).values()]
        parts += [layer.input_norm, layer.post_norm, *(vars(layer.router).values() if layer.router else [])]
        packed += sum(part.nbytes for part in parts if hasattr(part, "nbytes"))
    assert layer_bytes(text, range(text.num_hidden_layers)) == pytest.approx(packed, rel=0.05)
    assert memory.gib(3 * GIB // 2) == "1.5 GiB"
