"""Nano's training computes the same as serving, and an interruption does not change its result."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import services.nano
from services.checkpoint.markers import Marker
from services.local.random_checkpoint.dims import RandomDims
from services.local.random_checkpoint.vocabulary import small_vocabulary
from services.model import int4
from services.model.checkpoint import Checkpoint
from services.nano.train import batches
from services.nano.train.batches import Maker, Mixture, steps
from services.nano.train.dims import nano_dims
from services.nano.train.export import Nano, read_checkpoint, write_checkpoint
from services.nano.train.loop import (
    Schedule,
    Trainer,
    picture_features,
    picture_loss,
    split_parameters,
    token_losses,
    train,
)
from services.nano.train.model import Layout
from services.nano.train.muon import orthogonal
from services.nano.train.skills import GENERATORS
from services.nano.train.straight_through import as_bf16, as_int4
from services.nano.train.vocabulary import train_vocabulary
from services.tokenizer.vocabulary import load_vocabulary
from services.vision.model import Grid, VisionModel
from services.vision.weights import load_vision
from tests.reference.model import ReferenceModel

BASE = 300
NANO = Path(services.nano.__file__).parent
LIMITS = {"in_patch_limit": 16, "in_patch_limit_each_frame": 16}


def small_dims() -> RandomDims:
    dims = nano_dims(BASE)
    text = dataclasses.replace(
        dims.text,
        hidden_size=64,
        num_hidden_layers=3,
        moe_intermediate_size=32,
        n_routed_experts=6,
        intermediate_size=96,
    )
    vision = dataclasses.replace(
        dims.vision, hidden_size=32, num_hidden_layers=2, intermediate_size=48, text_hidden_size=text.hidden_size
    )
    return RandomDims(text, vision)


def new_nano(seed: int = 0) -> Nano:
    torch.manual_seed(seed)
    return Nano(small_dims())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with untrained weights and a router bias."""
    path = tmp_path_factory.mktemp("nano")
    write_checkpoint(path, untrained(), small_vocabulary(BASE), LIMITS)
    return path


def untrained() -> Nano:
    nano = new_nano()
    for block in nano.text.blocks[1:]:
        block.mlp.bias += torch.linspace(-0.1, 0.1, 6)
    return nano


def loaded(folder) -> Nano:
    nano = new_nano(seed=1)
    read_checkpoint(folder, nano)
    return nano


def test_rounding_is_that_of_packing():
    weight = torch.randn(40, 96) * torch.logspace(-8, 2, 40).unsqueeze(1)
    packed, scale = int4.quantize(weight)
    stored = int4.unpack_int4(packed).float() * scale.float().repeat_interleave(32, dim=1)
    assert torch.equal(as_int4(weight), stored)
    assert torch.equal(as_bf16(weight), weight.bfloat16().float())


@pytest.mark.parametrize("rounded", [as_int4, as_bf16])
def test_gradient_goes_straight_through(rounded):
    weight = torch.randn(8, 64, requires_grad=True)
    wanted = torch.randn(8, 64)
    (rounded(weight) * wanted).sum().backward()
    assert torch.equal(weight.grad, wanted)


def test_writing_what_was_read_changes_nothing(folder, tmp_path):
    write_checkpoint(tmp_path, loaded(folder), small_vocabulary(BASE), LIMITS)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("packed", [False, True], ids=["before-packing", "after-packing"])
def test_text_model_is_the_reference(folder, packed):
    lengths = [5, 9, 40]
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(BASE, (length,), generator=generator) for length in lengths]
    places = torch.tensor([0, 1, 2, 3, 4, 0, 0, 0, 0, *range(5, 54)])
    layout = Layout([(2, 9), (1, 40)], places, torch.tensor([0, 1, 2, 3, 4, *range(9, 58)]))
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad():
        ours = (loaded(folder) if packed else untrained()).text(torch.cat(texts), positions, layout).split(lengths)
    reference = ReferenceModel(folder)
    for logits, text in zip(ours, texts, strict=True):
        torch.testing.assert_close(logits, reference.logits(text.tolist()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [Grid(1, 8, 8), Grid(1, 4, 6), Grid(3, 4, 4)])
def test_tower_is_that_of_the_vision_service(folder, grid):
    patches = torch.rand(2 * grid.num_patches, 3, 14, 14) * 2 - 1
    config, weights = load_vision(Checkpoint(folder), torch.float32)
    with torch.no_grad():
        ours = loaded(folder).tower(patches.flatten(1).view(2, grid.num_patches, -1), grid)
    torch.testing.assert_close(ours, torch.stack(VisionModel(config, weights).encode(patches, [grid, grid])))


def test_every_parameter_learns(folder):
    nano = loaded(folder)
    maker = Maker(folder, Mixture(dict.fromkeys(GENERATORS, 1.0), samples=24, groups=2), GENERATORS)
    batch = maker.step(0)
    token_losses(nano, batch, picture_features(nano, batch)).sum().backward()
    still = {name for name, p in nano.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert still == set()
    assert sum(map(len, split_parameters(nano))) == len(list(nano.parameters()))


def test_the_choice_of_the_mode_is_not_learnt(folder):
    """The client chooses the mode. A model that learned it would skip its thoughts in skills with few of them."""
    batch = Maker(folder, Mixture({"compare": 1.0}, samples=12, groups=2), GENERATORS).step(0)
    vocabulary = load_vocabulary(folder)
    ends = batch.next_ids == vocabulary.marker_ids[Marker.THINK_END]
    chosen = batch.token_ids == vocabulary.marker_ids[Marker.THINK_BEGIN]
    assert batch.unlearnt[ends & chosen].all() and (ends & chosen).any()
    thought = ends & ~chosen & batch.targets
    assert thought.any() and not batch.unlearnt[thought].any()


def test_what_fills_up_changes_no_loss(folder, monkeypatch):
    nano = loaded(folder)
    found = []
    for rounding in (1, 8):
        for name in ("ROUND_TOKENS", "ROUND_LENGTH", "ROUND_ITEMS"):
            monkeypatch.setattr(batches, name, rounding)
        batch = Maker(folder, Mixture({"video": 1.0, "image": 2.0}, samples=5, groups=2), GENERATORS).step(0)
        with torch.no_grad():
            media = picture_features(nano, batch)
            losses = token_losses(nano, batch, media)[~batch.unlearnt].mean()
            found.append((len(batch.token_ids), torch.stack((losses, picture_loss(nano, batch, *media)))))
    (few, tight), (many, filled) = found
    assert few < many
    torch.testing.assert_close(filled, tight)


def test_experts_all_at_once_are_experts_one_by_one():
    experts = new_nano().text.blocks[1].mlp
    x = torch.randn(30, 64)
    shares = experts.route(x)
    assert (shares > 0).sum(1).tolist() == [2] * 30
    torch.testing.assert_close(experts.all_at_once(x, shares), experts.one_by_one(x, shares))


def test_router_bias_follows_the_load():
    nano = new_nano()
    experts = nano.text.blocks[1].mlp
    experts.load += torch.tensor([9.0, 3.0, 3.0, 1.0, 1.0, 1.0])
    nano.text.balance(0.01)
    torch.testing.assert_close(experts.bias, torch.tensor([-0.01, 0.0, 0.0, 0.01, 0.01, 0.01]))
    assert experts.load.sum() == 0


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (64, 64)])
def test_updates_are_about_orthogonal(shape):
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, min(shape)))[0] for n in shape)
    matrix = left @ torch.diag(torch.linspace(0.1, 1.0, min(shape))) @ right.T
    values = torch.linalg.svdvals(orthogonal(torch.stack([matrix, -3 * matrix])))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_resumed_run_is_the_uninterrupted_one(folder, tmp_path):
    mixture = Mixture({"compare": 1.0, "image": 1.0}, samples=4, groups=2)
    schedule = Schedule(steps=4, decay_steps=2, warmup_steps=2)

    def run(trainer: Trainer, end: int) -> None:
        wanted = list(range(trainer.step + 1, end + 1))
        made = steps(folder, mixture, trainer.step, end, workers=0)
        assert list(train(trainer, made, list(mixture.weights), tmp_path / "log")) == wanted

    whole = Trainer(loaded(folder), schedule)
    run(whole, 4)
    first = Trainer(loaded(folder), schedule)
    run(first, 2)
    first.save(tmp_path / "state.pt")
    second = Trainer(new_nano(seed=5), schedule)
    second.load(tmp_path / "state.pt")
    run(second, 4)
    assert second.step == whole.step == 4
    for (name, expected), found in zip(whole.nano.state_dict().items(), second.nano.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


def test_steps_are_the_same_from_another_process(folder):
    mixture = Mixture({"recall": 1.0, "video": 1.0}, samples=3, groups=2, seed=7)
    here = list(steps(folder, mixture, 5, 7, workers=0))
    there = list(steps(folder, mixture, 5, 7, workers=1))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        assert all(torch.equal(a.patches, b.patches) for a, b in zip(one.pictures, other.pictures, strict=True))


def test_schedule():
    schedule = Schedule(steps=100, decay_steps=20, warmup_steps=10)
    assert [schedule.factor(step) for step in (0, 9, 50, 80, 90, 99)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0.05])


def test_vocabulary_joins_what_is_frequent_and_no_digits(tmp_path):
    tokens = train_vocabulary(["colour: 2024 2024", "colour, colour 2024 and counts"], 262)
    assert tokens[:256] == small_vocabulary(256)
    assert b"colour" in tokens
    assert not any(len(token) > 1 and any(chr(byte).isdigit() for byte in token) for token in tokens)
    dims = small_dims()
    dims = RandomDims(dataclasses.replace(dims.text, vocab_size=len(tokens) + 256), dims.vision)
    write_checkpoint(tmp_path, Nano(dims), tokens, LIMITS)
    vocabulary = load_vocabulary(tmp_path)
    ids = vocabulary.encode("colour: 2024")
    assert vocabulary.token_bytes(ids) == [b"colour", b":", b" ", b"2", b"0", b"2", b"4"]


def test_limits_of_pictures_are_the_checkpoint_s_own(folder):
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())["media_proc_cfg"]
    assert {name: preprocessor[name] for name in LIMITS} == LIMITS


def test_a_signal_to_the_whole_group_ends_a_run_and_keeps_it(tmp_path):
    """Ctrl-C in a terminal reaches also the processes that make samples."""
    command = [sys.executable, "-m", "services.nano.train", str(tmp_path), "--from", str(NANO), "--samples", "2"]
    with subprocess.Popen([*command, "--device", "cpu", "--save-steps", "1"], start_new_session=True) as run:
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "state.pt").exists():
                assert run.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(run.pid, signal.SIGTERM)
            assert run.wait(60) == 0
        finally:
            run.kill()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] >= 1
    nano = Nano(nano_dims())
    read_checkpoint(tmp_path / "checkpoint", nano)
    assert any(not torch.equal(a, b) for a, b in zip(nano.parameters(), shipped().parameters(), strict=True))


def shipped() -> Nano:
    nano = Nano(nano_dims())
    read_checkpoint(NANO, nano)
    return nano
