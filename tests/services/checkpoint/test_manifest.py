"""The manifest of a checkpoint, and the damage that it detects."""

import re
import subprocess
import sys

import pytest

from services.checkpoint.manifest import MANIFEST_FILE, verify, write_manifest
from services.runtime.errors import CheckpointError

LAYER_2 = "model-00003-of-000006.safetensors"


def flip(file, byte, bit):
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


def test_a_right_copy_passes_and_sha256sum_agrees(damaged):
    num_files = len([path for path in damaged.iterdir() if path.name != MANIFEST_FILE])
    assert write_manifest(damaged) == num_files
    assert verify(damaged) == num_files
    subprocess.run(["sha256sum", "--check", "--quiet", MANIFEST_FILE], cwd=damaged, check=True)


@pytest.mark.parametrize("byte, bit", [(-1, 0), (200_000, 7), (12, 3)], ids=["last", "middle", "header"])
def test_one_flipped_bit_is_named(damaged, byte, bit):
    write_manifest(damaged)
    flip(damaged / LAYER_2, byte, bit)
    with pytest.raises(
        CheckpointError, match=rf"^{damaged / LAYER_2}: expected SHA-256 [0-9a-f]{{64}}, found [0-9a-f]{{64}}$"
    ):
        verify(damaged)


def test_every_fault_is_named_at_once(damaged):
    write_manifest(damaged)
    flip(damaged / "config.json", 0, 0)
    (damaged / "tiktoken.model").unlink()
    (damaged / "more.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        verify(damaged)
    lines = error.value.message.splitlines()
    assert [re.sub(r" [0-9a-f]{64}", "", line.removeprefix(f"{damaged}/")) for line in lines] == [
        "tiktoken.model: expected a file of the manifest, found none",
        "more.safetensors: expected in SHA256SUMS, found no line",
        "config.json: expected SHA-256, found",
    ]


@pytest.mark.parametrize(
    "manifest, message",
    [
        pytest.param(None, "expected a manifest, found none; write one", id="none"),
        pytest.param("0" * 63 + "  config.json\n", "SHA256SUMS line 1: expected 64 hexadecimal digits", id="short"),
        pytest.param("", "config.json: expected in SHA256SUMS, found no line", id="empty"),
    ],
)
def test_a_manifest_that_is_none(damaged, manifest, message):
    if manifest is not None:
        (damaged / MANIFEST_FILE).write_text(manifest)
    with pytest.raises(CheckpointError, match=message):
        verify(damaged)


@pytest.mark.slow
def test_the_command(damaged):
    def moonshard(*arguments):
        command = [sys.executable, "-m", "services.local", "verify-checkpoint", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert moonshard("--write", str(damaged)).returncode == 0
    right = moonshard(str(damaged))
    assert (right.returncode, right.stderr) == (0, "")
    flip(damaged / LAYER_2, 100_000, 1)
    wrong = moonshard(str(damaged))
    assert wrong.returncode == 2
    assert f"{LAYER_2}: expected SHA-256" in wrong.stderr
    start = subprocess.run(
        [sys.executable, "-m", "services.local", "up", "--verify", "--model", str(damaged)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert start.returncode == 2
    assert f"{LAYER_2}: expected SHA-256" in start.stderr
