"""The training loop, which can continue after an interruption."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as nnf

from services.nano.train.batches import Batch
from services.nano.train.export import Nano
from services.nano.train.muon import Muon

LOG_STEPS = 20
# Factor of AdamW's rate. All inputs of a uniform patch have one sign, so small changes of its 588 weights add up: at
# the full rate the tower's output was noise, and it had learned nothing after 900 steps.
PATCH_RATE = 0.05


@dataclass(frozen=True)
class Schedule:
    """Learning rates (warm-up, constant, then linearly to zero) and weights of losses.

    steps           number of all steps
    decay_steps     number of last steps in which the rates fall
    matrix_lr       rate of Muon; `rate` is AdamW's, for all other parameters
    prompt_weight   weight of a prompt's token in the loss, relative to an answer's: copying is learned from both
    picture_weight  weight of `picture_loss`
    balance_rate    change of a router's bias in a step
    """

    steps: int
    decay_steps: int
    warmup_steps: int = 60
    matrix_lr: float = 0.02
    rate: float = 0.004
    prompt_weight: float = 0.1
    picture_weight: float = 0.3
    balance_rate: float = 0.001

    def factor(self, step: int) -> float:
        """Return the factor of both rates at a step."""
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / max(1, self.decay_steps))


class Trainer:
    """Model, optimizers and the number of the next step; `save` and `load` cover all of it."""

    def __init__(self, nano: Nano, schedule: Schedule) -> None:
        self.nano = nano
        self.device = nano.pixel_values.device
        self.schedule = schedule
        self.step = 0
        matrices, others, patches = split_parameters(nano)
        self._muon = Muon(matrices, lr=schedule.matrix_lr)
        groups = [{"params": others, "share": 1.0}, {"params": patches, "share": PATCH_RATE}]
        self._adam = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def learn(self, batch: Batch, num_skills: int) -> Tensor:
        """Do one step; return sum of losses and number of tokens of answers by skill, [2, skills]."""
        schedule = self.schedule
        factor = schedule.factor(self.step)
        for group in self._muon.param_groups:
            group["lr"] = schedule.matrix_lr * factor
        for group in self._adam.param_groups:
            group["lr"] = schedule.rate * factor * group["share"]
        # On a GPU the products are computed in bf16 as in serving; sums stay in float32.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            media = picture_features(self.nano, batch)
            losses = token_losses(self.nano, batch, media)
            weights = torch.where(batch.targets, 1.0, schedule.prompt_weight).masked_fill(batch.unlearnt, 0.0)
            loss = (losses * weights).sum() / weights.sum()
            if media is not None:
                loss = loss + schedule.picture_weight * picture_loss(self.nano, batch, *media)
        torch.autograd.backward(loss)
        answers = batch.targets.float()
        seen = torch.zeros(2, num_skills, device=self.device)
        seen.index_add_(1, batch.skills, torch.stack((losses.detach() * answers, answers)))
        torch.nn.utils.clip_grad_norm_(self.nano.parameters(), 1.0)
        self._muon.step()
        self._adam.step()
        self._muon.zero_grad()
        self._adam.zero_grad()
        self.nano.text.balance(schedule.balance_rate)
        self.step += 1
        return seen

    def save(self, file: Path) -> None:
        """Save all state on which the next step depends; the old file stays until the new one is complete."""
        partial = file.with_suffix(".partial")
        torch.save(
            {
                "step": self.step,
                "nano": self.nano.state_dict(),
                "muon": self._muon.state_dict(),
                "adam": self._adam.state_dict(),
            },
            partial,
        )
        partial.replace(file)

    def load(self, file: Path) -> None:
        """Restore the state that `save` wrote."""
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.step = state["step"]
        self.nano.load_state_dict(state["nano"])
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def split_parameters(nano: Nano) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return parameters for Muon; for AdamW (vectors, tables of tokens and positions, routers); of patch embedding."""
    tables = ("embedding", "head", "router", "pos_emb")
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    patches: list[Tensor] = []
    for name, parameter in nano.named_parameters():
        if "patch_embed/proj" in name:
            patches.append(parameter)
        elif parameter.dim() < 2 or any(table in name for table in tables):
            others.append(parameter)
        else:
            matrices.append(parameter)
    return matrices, others, patches


def picture_features(nano: Nano, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Return places among the tokens, [n], and features, [n, hidden], of all pictures; None without pictures."""
    if not batch.pictures:
        return None
    features = [
        # Without the features of padding items.
        nano.tower(nano.pixel_values[pictures.patches.int()], pictures.grid).flatten(0, 1)[: len(pictures.places)]
        for pictures in batch.pictures
    ]
    return torch.cat([pictures.places for pictures in batch.pictures]), torch.cat(features)


def token_losses(nano: Nano, batch: Batch, media: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the cross entropy of each next token, [tokens]."""
    logits = nano.text(batch.token_ids, batch.positions, batch.layout, media)
    return nnf.cross_entropy(logits, batch.next_ids, reduction="none")


def picture_loss(nano: Nano, batch: Batch, places: Tensor, features: Tensor) -> Tensor:
    """Return the loss of predicting an answer's words from the mean feature of the sample's pictures.

    The head reads the feature like the last layer's output, so that the text model can name a colour by copying the
    feature at the picture's place. Without this loss the tower learned nothing, because no word of an answer attended
    to the picture, and no gradient reached the tower.
    """
    sample = batch.samples[places]
    shape = batch.num_samples, features.shape[1]
    features = features.float()
    mean = features.new_zeros(shape).index_add(0, sample, features)
    num_features = features.new_zeros(shape[0]).index_add(0, sample, torch.ones_like(features[:, 0]))
    mean = mean / num_features.clamp(min=1).unsqueeze(1)
    logits = nnf.linear(nano.text.final_norm(mean), nano.text.head.detach())
    return nnf.cross_entropy(logits[batch.samples[batch.described]], batch.next_ids[batch.described])


def train(trainer: Trainer, steps: Iterable[Batch], skills: Sequence[str], log: Path) -> Iterator[int]:
    """Learn from the steps, append mean losses to `log` as JSON lines, and yield the number of completed steps."""
    seen = torch.zeros(2, len(skills), device=trainer.device)
    tokens, since = 0, time.perf_counter()
    for batch in steps:
        seen += trainer.learn(batch.to(trainer.device), len(skills))
        tokens += len(batch.token_ids)
        if trainer.step % LOG_STEPS == 0:
            means = {skill: round(a / b, 4) for skill, a, b in zip(skills, *seen.tolist(), strict=True) if b}
            record = {
                "step": trainer.step,
                "tokens_per_s": round(tokens / (time.perf_counter() - since)),
                "loss": means,
            }
            with log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            seen.zero_()
            tokens, since = 0, time.perf_counter()
        yield trainer.step
