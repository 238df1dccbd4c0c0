"""Compiles every variant for sm_90, which needs no GPU: `python -m tests.kernels.sm90.report [part of a name]`.

Prints one JSON object a line: a variant's registers, stack, spills and shared memory, its tensor core instructions and
the warnings of ptxas. It runs as a separate process, because Triton does not compile in a process that interprets.
"""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from tests.kernels.sm90.variant import Variant

FOLDER = Path(__file__).parent / "variants"
HOPPER = GPUTarget("cuda", 90, 32)


def all_variants() -> list[Variant]:
    """Return the variants of all files in the folder, by name."""
    modules = [importlib.import_module(f"tests.kernels.sm90.variants.{path.stem}") for path in FOLDER.glob("[a-z]*.py")]
    return sorted((variant for module in modules for variant in module.VARIANTS), key=lambda variant: variant.name)


def compiled(variant: Variant) -> tuple[Any, str]:
    """Return the compiled kernel and the output of ptxas."""
    arguments = variant.kernel.arg_names
    missing = [name for name in arguments if name not in variant.types and name not in variant.constants]
    assert not missing, f"{variant.name}: neither a type nor a constant for {missing}"
    signature = {name: variant.types.get(name, "constexpr") for name in arguments}
    aligned = [name for name, kind in variant.types.items() if kind[0] in "*i" and name not in variant.odd]
    attributes = {(arguments.index(name),): [["tt.divisibility", 16]] for name in aligned}
    language = GluonASTSource if variant.kernel.is_gluon() else ASTSource
    source = language(variant.kernel, signature, variant.constants, attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **variant.options}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        return triton.compile(source, target=HOPPER, options=options), said.getvalue()


def innermost_loop(cubin: bytes) -> int:
    """Return the machine instructions of the first loop without an inner loop; 0 if there is none."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)]
    place = {address: index for index, (address, _) in enumerate(lines)}
    targets = [(place.get(int(m[1], 16)), i) for i, (_, s) in enumerate(lines) if (m := re.search(r"BRA.* 0x(\w+)", s))]
    loops = [(begin, end) for begin, end in targets if begin is not None and begin < end]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return inner[0][1] - inner[0][0] + 1 if inner else 0


def measured(variant: Variant) -> dict[str, Any]:
    """Return the figures that the tests check."""
    start = time.perf_counter()
    kernel, said = compiled(variant)
    ptx = kernel.asm["ptx"]
    spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert spills and registers, said
    return {
        "name": variant.name,
        "registers": int(registers[1]),
        "stack": int(spills[1]),
        "spills": int(spills[2]) + int(spills[3]),
        "shared": kernel.metadata.shared,
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "wgmma_from_registers": len(re.findall(r"wgmma\.mma_async[^;]*?\},\s*\{", ptx)),
        "mma": len(re.findall(r"[^g]mma\.sync", ptx)),
        "warnings": sorted(set(re.findall(r"\((C75\d\d)\)", said))),
        "loop": innermost_loop(kernel.asm["cubin"]) if variant.max_loop else None,
        "seconds": round(time.perf_counter() - start, 2),
    }


def main() -> None:
    """Compile without cache, because ptxas prints its figures only when it runs."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        for variant in all_variants():
            if wanted in variant.name:
                sys.stdout.write(json.dumps(measured(variant)) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
