"""The samples of each training step, made ahead of time in worker processes.

Step number i depends only on the mixture, the seed and i, so that a run that continues after an interruption gets the
same samples.
"""

import multiprocessing
import os
import pickle
import random
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from services.checkpoint.config import load_config
from services.checkpoint.markers import Marker
from services.nano.train.model import Layout
from services.nano.train.rendering import Example, Item, example
from services.nano.train.sample import Generator
from services.nano.train.skills import GENERATORS
from services.tokenizer.vocabulary import load_vocabulary
from services.vision.grid import load_media_config
from services.vision.model import Grid

AHEAD = 24  # steps made before they are needed, plus two for each worker
# Sizes are rounded up to multiples: tokens of a step by this number per sample, length of a group, items of a grid.
ROUND_TOKENS, ROUND_LENGTH, ROUND_ITEMS = 8, 16, 8


@dataclass(frozen=True)
class Mixture:
    """The composition of a step.

    weights  frequency of each skill, relative to the others
    samples  samples of a step
    groups   parts of a step in attention, each padded to its longest sample
    """

    weights: Mapping[str, float]
    samples: int
    groups: int
    seed: int = 0


@dataclass(frozen=True)
class Pictures:
    """Images and chunks of videos that share a grid.

    patches  [items, patches, 3 * patch * patch] u8, padded with the first items
    places   [items * tokens of an item] i64: index among the tokens for each feature, without padding items
    """

    grid: Grid
    patches: Tensor
    places: Tensor


@dataclass(frozen=True)
class Batch:
    """The samples of a step, consecutive, shorter ones first, padded with the first tokens.

    Sizes are rounded up so that few different ones occur, because a GPU has to prepare for each.

    token_ids  [tokens] i64
    samples    [tokens] i64: index of each token's sample
    positions  [tokens] i64 of each token in its sample
    layout     groups of samples for attention
    next_ids   [tokens] i64: the token after each
    targets    [tokens] bool: whether the next token is one that the model should write
    unlearnt   [tokens] bool: whether the next token is not learned: there is none, the token is padding, or the next
               token says that no thoughts are wanted, which is the client's choice
    skills     [tokens] i64: the skill of each token, an index into the names of the mixture
    pictures   pictures of all samples, by grid
    described  [n] i64: tokens before a target in samples that have pictures
    num_samples  number of samples
    """

    token_ids: Tensor
    samples: Tensor
    positions: Tensor
    layout: Layout
    next_ids: Tensor
    targets: Tensor
    unlearnt: Tensor
    skills: Tensor
    pictures: Sequence[Pictures]
    described: Tensor
    num_samples: int

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device without waiting for the copies."""
        moved: Batch = _moved(self, device)
        return moved


class Maker:
    """Makes batches; each worker process has one."""

    def __init__(self, folder: Path, mixture: Mixture, generators: Mapping[str, Generator]) -> None:
        config = load_config(folder)
        assert config.vision is not None
        self._vocabulary = load_vocabulary(folder)
        self._media = load_media_config(folder, config.vision)
        self._mixture = mixture
        self._generators = generators

    def step(self, number: int) -> Batch:
        """Return the batch of step `number`."""
        mixture = self._mixture
        names = list(mixture.weights)
        choice = random.Random(f"{mixture.seed}/{number}")
        chosen = choice.choices(names, [mixture.weights[name] for name in names], k=mixture.samples)
        first = number * mixture.samples
        samples = [self._generators[name]("train", first + index) for index, name in enumerate(chosen)]
        return self.batch([example(sample, self._vocabulary, self._media) for sample in samples], names)

    def batch(self, examples: Sequence[Example], names: Sequence[str]) -> Batch:
        """Combine examples to a batch; `names` are the names of all skills."""
        ordered = sorted(examples, key=lambda one: len(one.token_ids))
        lengths = [len(one.token_ids) for one in ordered]
        counts = torch.tensor(lengths)
        again = _filled(sum(lengths), ROUND_TOKENS * self._mixture.samples)
        samples = torch.arange(len(lengths)).repeat_interleave(counts)
        targets = torch.tensor([target for one in ordered for target in (*one.targets[1:], False)])
        next_ids = torch.tensor([token_id for one in ordered for token_id in (*one.token_ids[1:], 0)])
        unlearnt = torch.cat([torch.arange(length) == length - 1 for length in lengths])
        unlearnt |= (next_ids == self._vocabulary.marker_ids[Marker.THINK_END]) & ~targets
        with_pictures = torch.tensor([bool(one.items) for one in ordered])
        skills = torch.tensor([names.index(one.skill) for one in ordered])
        layout = _layout(lengths, self._mixture.groups)
        return Batch(
            token_ids=torch.tensor([token_id for one in ordered for token_id in one.token_ids])[again],
            samples=samples[again],
            positions=torch.cat([torch.arange(length) for length in lengths])[again],
            layout=replace(layout, real=layout.real[again]),
            next_ids=next_ids[again],
            targets=nnf.pad(targets, (0, len(again) - len(targets))),
            unlearnt=nnf.pad(unlearnt, (0, len(again) - len(unlearnt)), value=True),
            skills=skills[samples[again]],
            pictures=self._pictures(ordered),
            described=(targets & with_pictures[samples]).nonzero().squeeze(1),
            num_samples=len(ordered),
        )

    def _pictures(self, examples: Sequence[Example]) -> list[Pictures]:
        starts = accumulate((len(one.token_ids) for one in examples), initial=0)
        placed = [
            (item, start + place)
            for one, start in zip(examples, starts, strict=False)
            for item, place in zip(one.items, one.places, strict=True)
        ]
        placed.sort(key=lambda pair: _grid_key(pair[0]))
        pictures = []
        for _, group in groupby(placed, key=lambda pair: _grid_key(pair[0])):
            pairs = list(group)
            grid = pairs[0][0].grid
            patches = torch.stack([torch.from_numpy(item.patches).flatten(1) for item, _ in pairs])
            num_tokens = grid.rows * grid.columns // 4
            places = torch.cat([torch.arange(place, place + num_tokens) for _, place in pairs])
            pictures.append(Pictures(grid, patches[_filled(len(patches), ROUND_ITEMS)], places))
        return pictures


def _filled(number: int, multiple: int) -> Tensor:
    """Return 0..number - 1, then again from 0 on, up to a multiple."""
    return torch.arange(-(-number // multiple) * multiple) % number


def _layout(lengths: Sequence[int], num_groups: int) -> Layout:
    """Put consecutive samples into equal groups, each padded to its longest sample and a multiple of ROUND_LENGTH."""
    size = -(-len(lengths) // num_groups)
    shapes, places, real = [], [], []
    start, num_places = 0, 0
    for first in range(0, len(lengths), size):
        of_group = torch.tensor(lengths[first : first + size])
        ends = of_group.cumsum(0)
        column = torch.arange(-(-int(of_group.max()) // ROUND_LENGTH) * ROUND_LENGTH)
        inside = column < of_group.unsqueeze(1)
        places.append((start + (ends - of_group).unsqueeze(1) + column).where(inside, start).flatten())
        real.append(num_places + inside.flatten().nonzero().squeeze(1))
        shapes.append((len(of_group), len(column)))
        start += int(ends[-1])
        num_places += inside.numel()
    return Layout(shapes, torch.cat(places), torch.cat(real))


def steps(folder: Path, mixture: Mixture, first: int, end: int, *, workers: int = 1) -> Iterator[Batch]:
    """Yield the batches of steps first..end - 1 in order. Without workers each is made in this process when needed."""
    if workers == 0:
        maker = Maker(folder, mixture, GENERATORS)
        yield from (maker.step(number) for number in range(first, end))
        return
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawning, _start, (folder, mixture)) as pool:
        ahead = AHEAD + 2 * workers
        waiting = deque(pool.submit(_make, number) for number in range(first, min(first + ahead, end)))
        try:
            for number in range(first, end):
                yield pickle.loads(waiting.popleft().result())
                if number + ahead < end:
                    waiting.append(pool.submit(_make, number + ahead))
        finally:
            pool.shutdown(cancel_futures=True)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        # From pinned memory the copy does not wait for the device's computation.
        return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
    if isinstance(value, (Batch, Layout, Pictures)):
        return replace(value, **{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return [_moved(one, device) for one in value] if isinstance(value, list) else value


def _grid_key(item: Item) -> tuple[int, int, int]:
    return item.grid.frames, item.grid.rows, item.grid.columns


# The state of a worker process; the functions of a pool can keep state only in a global.
_makers: list[Maker] = []


def _start(folder: Path, mixture: Mixture) -> None:
    os.nice(5)
    # A signal that ends the run reaches the whole process group, but the current step still needs samples.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    _makers.append(Maker(folder, mixture, GENERATORS))


def _make(number: int) -> bytes:
    # Pickled here, because the pool would use shared memory and a file descriptor for each tensor.
    return pickle.dumps(_makers[0].step(number))
