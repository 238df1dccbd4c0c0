"""Compile the native hot wire: one library for any CPU that Linux runs on.

Run by `protos/build.py` at every install, or by hand: `python services/wire/native/build.py`. The C++ compiler is
`CXX`, else g++. Without a compiler nothing is built, stderr says why, and frames pass through Python instead.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / "wire.so"
FLAGS = ["-O2", "-std=c++20", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]


def build() -> list[str]:
    """Compile what is missing or older than its sources; return the paths of the libraries there are."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if sys.platform != "linux" or compiler is None:
        return _nothing("no C++ compiler (set CXX)" if compiler is None else f"no native wire for {sys.platform}")
    sources = sorted(FOLDER.glob("*.cpp"))
    inputs = [*sources, *FOLDER.glob("*.h"), Path(__file__)]
    if LIBRARY.exists() and LIBRARY.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return [str(LIBRARY)]
    # Written beside the target and renamed, so that a process never loads half a library.
    partial = LIBRARY.with_suffix(f".{os.getpid()}.partial")
    try:
        command = [compiler, *FLAGS, *map(str, sources), "-o", str(partial)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        partial.replace(LIBRARY)
    except subprocess.CalledProcessError as error:
        return _nothing(f"the native wire did not compile:\n{error.stderr}")
    finally:
        partial.unlink(missing_ok=True)
    return [str(LIBRARY)]


def _nothing(reason: str) -> list[str]:
    sys.stderr.write(f"{reason}; the hot wire runs in Python\n")
    return []


if __name__ == "__main__":
    sys.stdout.writelines(f"{path}\n" for path in build())
