"""python -m services.local.random_checkpoint FOLDER --preset tiny"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from services.local.random_checkpoint.write import PRESETS, write_random_checkpoint


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with status 2 and a message if the folder exists."""
    parser = argparse.ArgumentParser(prog="python -m services.local.random_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to write; must not exist")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="sizes (default: tiny)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same weights")
    parser.add_argument("--vocabulary-from", type=Path, help="copy the real vocabulary from this folder")
    chosen = parser.parse_args(arguments)
    try:
        write_random_checkpoint(
            chosen.folder,
            dims=chosen.preset,
            seed=chosen.seed,
            vocabulary="real" if chosen.vocabulary_from else "tiny",
            vocabulary_from=chosen.vocabulary_from,
        )
    except FileExistsError as error:
        parser.error(str(error))
    sys.stdout.write(f"{chosen.folder}\n")


if __name__ == "__main__":
    main()
