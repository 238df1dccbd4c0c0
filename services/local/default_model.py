"""The checkpoint that is served when none is named: tiny, random, written on first use into the user's cache."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from services.local.run_folder import running_clusters

NAME = "tiny-random"


def default_model(cache: Path) -> Path:
    """Where the default checkpoint lies in `cache`, written or not.

    Under a digest of the writer's source: a checkpoint of an older writer is not used by mistake.
    """
    sources = sorted(Path(__file__).parent.glob("random_*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return cache / "checkpoints" / f"{NAME}-{digest[:12]}"


def write_default_model(cache: Path) -> None:
    """Writes the default checkpoint and removes those of older versions; CalledProcessError if it fails.

    In a process of its own: the writer needs torch, which the supervisor should not keep in memory.
    """
    path = default_model(cache)
    command = [sys.executable, "-P", "-m", "services.local.random_checkpoint", str(path), "--preset", "tiny"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    # A running cluster may still restart a process that reads the checkpoint that it was started with.
    for older in path.parent.glob(f"{NAME}-*") if not running_clusters(cache) else ():
        if older != path:
            shutil.rmtree(older)
