"""Compile the native CPU kernels: one library per instruction set, from the same sources.

`protos/build.py` runs this at every install; `python kernels/native/build.py` runs it by hand. The C++ compiler is
`CXX`, else g++. Without a compiler, on another architecture, or if a compilation fails, stderr gives the reason, and
the libraries that were built, or the portable kernels, are used.

Two kinds of libraries are for tests only: `--emulate` replaces the tile unit by plain C++; `--sanitize address` and
`--sanitize thread` instrument every access. Both need `--into FOLDER`.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

# Library name -> flags. x86-64-v3 has AVX2 and FMA, x86-64-v4 has AVX512.
_AVX512 = ["-march=x86-64-v4", "-DMOONSHARD_AVX512"]
_BF16_DOT = ["-mavx512bf16", "-DMOONSHARD_BF16_DOT"]
LIBRARIES = {
    "avx2": ["-march=x86-64-v3"],
    "avx512": _AVX512,
    "avx512bf16": [*_AVX512, *_BF16_DOT],
    "amx": [*_AVX512, *_BF16_DOT, "-DMOONSHARD_AMX"],
}

# No -ffast-math, because a result must not depend on the shape of a loop. -Wuninitialized is off because GCC 12 raises
# it wrongly inside its AVX512 headers.
FLAGS = [
    *("-O3", "-std=c++20", "-fPIC", "-shared", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
EMULATE = ["-O1", "-DMOONSHARD_EMULATED_AMX"]
# A sanitizer stops the process at its first report; -O1 keeps reports readable.
SANITIZE = {
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}


def library_path(name: str, folder: Path = FOLDER) -> Path:
    """Return the path of the library for an instruction set, whether it exists or not."""
    return folder / f"kernels_{name}.so"


def build(folder: Path = FOLDER, extra: Sequence[str] = (), names: Sequence[str] = tuple(LIBRARIES)) -> list[str]:
    """Compile the libraries that are missing or older than their sources; return the paths of all built ones.

    extra  compiler flags, put after the library's own
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if platform.machine().lower() not in {"x86_64", "amd64"} or sys.platform != "linux":
        return _nothing(f"no native kernels for {sys.platform} on {platform.machine()}")
    if compiler is None:
        return _nothing("no C++ compiler (set CXX)")
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        paths = threads.map(
            lambda name: _compile(compiler, library_path(name, folder), [*LIBRARIES[name], *extra]), names
        )
        return [str(path) for path in paths if path is not None]


def _compile(compiler: str, target: Path, flags: list[str]) -> Path | None:
    sources = sorted(FOLDER.glob("*.cpp"))
    inputs = [*sources, *FOLDER.rglob("*.h"), Path(__file__)]
    if target.exists() and target.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return target
    # Written beside the target and renamed, so that a process never loads half a library.
    partial = target.with_suffix(f".{os.getpid()}.partial")
    command = [compiler, *FLAGS, *flags, *map(str, sources), "-o", str(partial)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        partial.replace(target)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{target.name} did not compile and will not be used:\n{error.stderr}\n")
        return None
    finally:
        partial.unlink(missing_ok=True)
    return target


def _nothing(reason: str) -> list[str]:
    sys.stderr.write(f"{reason}; the portable kernels will be used\n")
    return []


def main() -> None:
    """Build by the command-line arguments and print the paths; fail if a test library does not compile."""
    parser = argparse.ArgumentParser(description="Compile the native CPU kernels.")
    parser.add_argument("--into", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES), metavar="NAME")
    parser.add_argument("--emulate", action="store_true", help="the tile unit in plain C++")
    parser.add_argument("--sanitize", choices=list(SANITIZE))
    chosen = parser.parse_args()
    extra = [*(EMULATE if chosen.emulate else []), *SANITIZE.get(chosen.sanitize, [])]
    if extra and chosen.into.resolve() == FOLDER:
        parser.error("--emulate and --sanitize need --into FOLDER: these libraries are for tests only")
    built = build(chosen.into, extra, chosen.only)
    sys.stdout.writelines(f"{path}\n" for path in built)
    if extra and len(built) < len(chosen.only):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
