"""Named checkpoints: nano, trained, in services/nano; tiny, random, written on first use."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from services.local.run_folder import running_clusters

NANO = Path(__file__).resolve().parents[1] / "nano"
TINY_NAME = "tiny-random"


@dataclass(frozen=True)
class Served:
    """A checkpoint and its presentation.

    name          name of the model in the API, besides those of K2.6
    display_name  name in the list of models, for users; empty: the gateway's default
    note          printed when the cluster serves; empty: nothing
    """

    path: Path
    name: str = "kimi-k2.6"
    display_name: str = ""
    note: str = ""


def served(model: str, cache: Path) -> Served:
    """Return the checkpoint for `--model`: nano, tiny or a folder. The tiny one may not be written yet."""
    if model == "nano":
        note = "This is Nano, a demonstration: K2.6's format and K2.6's way of talking, learnt by a very small model."
        return Served(NANO, "nano", "Nano", note)
    if model == "tiny":
        note = "This is a tiny checkpoint with RANDOM weights: its answers are random text."
        return Served(tiny_path(cache), TINY_NAME, TINY_NAME, note)
    return Served(Path(model).absolute())


def tiny_path(cache: Path) -> Path:
    """Return the path of the tiny checkpoint in `cache`, whether it exists or not.

    The name has a digest of the writer's source, so that a checkpoint of an older writer is not used by mistake.
    """
    sources = sorted(Path(__file__).with_name("random_checkpoint").glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return cache / "checkpoints" / f"{TINY_NAME}-{digest[:12]}"


def write_tiny(cache: Path) -> None:
    """Write the tiny checkpoint and remove those of older versions. Raises CalledProcessError on failure.

    The writer runs as a separate process, because it loads torch, which the supervisor should not keep in memory.
    """
    path = tiny_path(cache)
    command = [sys.executable, "-P", "-m", "services.local.random_checkpoint", str(path), "--preset", "tiny"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    # A running cluster may restart a process, which then reads the older checkpoint again.
    for older in path.parent.glob(f"{TINY_NAME}-*") if not running_clusters(cache) else ():
        if older != path:
            shutil.rmtree(older)
