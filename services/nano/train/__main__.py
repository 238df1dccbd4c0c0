"""Trains Nano and writes its checkpoint.

    python -m services.nano.train RUN_FOLDER --steps 6000 --decay-steps 1500 --export services/nano

The state of the run is kept in RUN_FOLDER, and the same command continues from it. `--from FOLDER` starts with the
vocabulary and the stored weights of a checkpoint.
"""

import argparse
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

from services.checkpoint.vocabulary import load_tokens
from services.nano.train.batches import Mixture, steps
from services.nano.train.dims import FRAME_PATCHES, IMAGE_PATCHES, ORDINARY_TOKENS, nano_dims
from services.nano.train.export import Nano, read_checkpoint, write_checkpoint
from services.nano.train.loop import Schedule, Trainer, train
from services.nano.train.skills import GENERATORS
from services.nano.train.vocabulary import texts, train_vocabulary
from services.vision.grid import MediaConfig

LIMITS = {"in_patch_limit": IMAGE_PATCHES, "in_patch_limit_each_frame": FRAME_PATCHES}
VOCABULARY_SAMPLES = 1500  # samples of each skill from which the vocabulary is trained
STATE, FORMAT, LOG = "state.pt", "checkpoint", "log.jsonl"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. SIGINT and SIGTERM end the run after the current step and save it."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    run: Path = options.run
    run.mkdir(parents=True, exist_ok=True)
    nano = _prepare(run, options.start).to(options.device)
    schedule = Schedule(options.steps, options.decay_steps, matrix_lr=options.matrix_lr, rate=options.rate)
    trainer = Trainer(nano, schedule)
    if (run / STATE).exists():
        trainer.load(run / STATE)
    mixture = Mixture(_weights(options.mix), options.samples, options.groups, options.seed)
    made = steps(run / FORMAT, mixture, trainer.step, options.steps, workers=options.workers)
    stopped = _stop_signals()
    for step in train(trainer, made, list(mixture.weights), run / LOG):
        if stopped:
            break
        if step % options.save_steps == 0:
            trainer.save(run / STATE)
    trainer.save(run / STATE)
    _write(run / FORMAT, nano)
    if options.export:
        for file in sorted((run / FORMAT).iterdir()):
            shutil.copyfile(file, options.export / file.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.nano.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--steps", type=int, default=6000, help="in all, with those done already")
    parser.add_argument("--decay-steps", type=int, default=1500, help="the last ones, in which the rates go to zero")
    parser.add_argument("--samples", type=int, default=48, help="in a step")
    parser.add_argument("--groups", type=int, default=4, help="parts of a step, by length")
    parser.add_argument("--matrix-lr", type=float, default=0.01, help="rate of Muon")
    parser.add_argument("--rate", type=float, default=0.0015, help="rate of AdamW")
    parser.add_argument("--mix", default="", help="weights of skills other than 1: image=3,compare=0.5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="for tensor arithmetic on the CPU")
    parser.add_argument("--workers", type=int, default=1, help="processes that make samples")
    parser.add_argument("--save-steps", type=int, default=200, help="between two saves of the run")
    parser.add_argument("--from", dest="start", type=Path, help="checkpoint folder to start from")
    parser.add_argument("--export", type=Path, help="folder that the files of the checkpoint are copied to")
    return parser


def _prepare(run: Path, start: Path | None) -> Nano:
    """Return the model at the beginning of the run; create the run's checkpoint folder with a vocabulary."""
    folder = run / FORMAT
    if start is not None and not folder.exists():
        shutil.copytree(start, folder, ignore=shutil.ignore_patterns("*.py", "*.md", "train", "__pycache__"))
    if folder.exists():
        nano = Nano(nano_dims(_num_ordinary(folder)))
        read_checkpoint(folder, nano)
        return nano
    samples = (make("train", seed) for seed in range(VOCABULARY_SAMPLES) for make in GENERATORS.values())
    media = MediaConfig(image_patches=IMAGE_PATCHES, frame_patches=FRAME_PATCHES)
    tokens = train_vocabulary(texts(samples, media), ORDINARY_TOKENS)
    nano = Nano(nano_dims(len(tokens)))
    folder.mkdir()
    write_checkpoint(folder, nano, tokens, LIMITS)
    return nano


def _write(folder: Path, nano: Nano) -> None:
    tokens = load_tokens(folder, nano.dims.text.vocab_size).ordinary
    write_checkpoint(folder, nano, list(tokens), LIMITS)


def _num_ordinary(folder: Path) -> int:
    return len((folder / "tiktoken.model").read_bytes().splitlines())


def _weights(text: str) -> dict[str, float]:
    """Return the weights of all skills, by default 1. Raises ValueError for an unknown skill."""
    given = {name: float(weight) for name, weight in (pair.split("=") for pair in text.split(",") if pair)}
    unknown = given.keys() - GENERATORS.keys()
    if unknown:
        raise ValueError(f"--mix: no skill is called {min(unknown)}")
    return {name: given.get(name, 1.0) for name in GENERATORS}


def _stop_signals() -> list[int]:
    """Return a list that gets an element when the run should end."""
    stopped: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return stopped


if __name__ == "__main__":
    main()
