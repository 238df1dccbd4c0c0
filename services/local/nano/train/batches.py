"""Which samples a training step learns from, made ahead of time in processes of their own.

Step number i is a function of the mixture, the seed and i alone, so that a run that goes on after an interruption
sees what it would have seen.
"""

import multiprocessing
import os
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

import torch
from torch import Tensor

from services.local.nano.train.model import Group
from services.local.nano.train.rendering import Example, Item, example
from services.local.nano.train.sample import Generator
from services.local.nano.train.skills import GENERATORS
from services.model.config import load_config
from services.tokenizer.vocabulary import load_vocabulary
from services.vision.grid import load_media_config
from services.vision.model import Grid
from services.vision.preprocess import value_table

AHEAD = 24  # steps that are made before they are needed


@dataclass(frozen=True)
class Mixture:
    """How a step is made up.

    weights  how often each skill comes, relative to the others
    samples  in a step
    groups   parts of a step in attention, each padded to its longest sample
    """

    weights: Mapping[str, float]
    samples: int
    groups: int
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """The samples of a step, one after the other, shorter ones first.

    token_ids  [tokens] i64
    positions  [tokens] i64 of each token in its sample
    groups     samples that are attended to side by side
    next_ids   [tokens] i64: the token after each
    targets    [tokens] bool: whether that is one that the model should write
    last       [tokens] bool: whether there is none
    skills     [tokens] i64: which skill's sample the token is of, an index into the names of the mixture
    pictures   for each grid: patches [items, patches, 3 * patch * patch] f32 and the places of their features
    """

    token_ids: Tensor
    positions: Tensor
    groups: Sequence[Group]
    next_ids: Tensor
    targets: Tensor
    last: Tensor
    skills: Tensor
    pictures: Sequence[tuple[Grid, Tensor, Tensor]]


class Maker:
    """Makes the steps; one in each process."""

    def __init__(self, folder: Path, mixture: Mixture, generators: Mapping[str, Generator]) -> None:
        config = load_config(folder)
        assert config.vision is not None
        self._vocabulary = load_vocabulary(folder)
        self._media = load_media_config(folder, config.vision)
        self._mixture = mixture
        self._generators = generators
        self._values = torch.from_numpy(value_table())

    def step(self, number: int) -> Batch:
        """The batch that step `number` learns from."""
        mixture = self._mixture
        names = list(mixture.weights)
        choice = random.Random(f"{mixture.seed}/{number}")
        chosen = choice.choices(names, [mixture.weights[name] for name in names], k=mixture.samples)
        first = number * mixture.samples
        samples = [self._generators[name]("train", first + index) for index, name in enumerate(chosen)]
        return self.batch([example(sample, self._vocabulary, self._media) for sample in samples], names)

    def batch(self, examples: Sequence[Example], names: Sequence[str]) -> Batch:
        """Examples as a batch; `names` are those of all skills."""
        ordered = sorted(examples, key=lambda one: len(one.token_ids))
        lengths = [len(one.token_ids) for one in ordered]
        return Batch(
            token_ids=torch.tensor([token_id for one in ordered for token_id in one.token_ids]),
            positions=torch.cat([torch.arange(length) for length in lengths]),
            groups=_groups(lengths, self._mixture.groups),
            next_ids=torch.tensor([token_id for one in ordered for token_id in (*one.token_ids[1:], 0)]),
            targets=torch.tensor([target for one in ordered for target in (*one.targets[1:], False)]),
            last=torch.cat([torch.arange(length) == length - 1 for length in lengths]),
            skills=torch.tensor([names.index(one.skill) for one in ordered]).repeat_interleave(torch.tensor(lengths)),
            pictures=self._pictures(ordered),
        )

    def _pictures(self, examples: Sequence[Example]) -> list[tuple[Grid, Tensor, Tensor]]:
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
            pictures.append((grid, self._values[patches.long()], places))
        return pictures


def _groups(lengths: Sequence[int], num_groups: int) -> list[Group]:
    """Consecutive samples in groups of equally many, each padded to its longest."""
    size = -(-len(lengths) // num_groups)
    groups, start = [], 0
    for first in range(0, len(lengths), size):
        of_group = torch.tensor(lengths[first : first + size])
        ends = of_group.cumsum(0)
        column = torch.arange(int(of_group.max()))
        inside = column < of_group.unsqueeze(1)
        places = (start + (ends - of_group).unsqueeze(1) + column).where(inside, start)
        groups.append(Group(places, inside.flatten().nonzero().squeeze(1)))
        start += int(ends[-1])
    return groups


def steps(folder: Path, mixture: Mixture, first: int, end: int, *, workers: int = 1) -> Iterator[Batch]:
    """Steps first..end - 1, in order. Without workers they are made here, when they are needed."""
    if workers == 0:
        maker = Maker(folder, mixture, GENERATORS)
        yield from (maker.step(number) for number in range(first, end))
        return
    spawning = multiprocessing.get_context("spawn")
    with spawning.Pool(workers, _start, (folder, mixture)) as pool:
        waiting = [pool.apply_async(_make, (number,)) for number in range(first, min(first + AHEAD, end))]
        for number in range(first, end):
            yield pickle.loads(waiting.pop(0).get())
            if number + AHEAD < end:
                waiting.append(pool.apply_async(_make, (number + AHEAD,)))


def _grid_key(item: Item) -> tuple[int, int, int]:
    return item.grid.frames, item.grid.rows, item.grid.columns


# The one object of a worker process: a pool gives its functions no other place to keep anything.
_makers: list[Maker] = []


def _start(folder: Path, mixture: Mixture) -> None:
    os.nice(5)
    torch.set_num_threads(1)
    _makers.append(Maker(folder, mixture, GENERATORS))


def _make(number: int) -> bytes:
    # Pickled here: left to the pool, each tensor would take a piece of shared memory and a file descriptor.
    return pickle.dumps(_makers[0].step(number))
