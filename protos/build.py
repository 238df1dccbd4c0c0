"""Build products of an install: protobuf modules beside their .proto, CPU kernels beside their source.

Hatchling calls `BuildHook` for every wheel and editable install; `python protos/build.py` does the same by hand.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def build_protos() -> list[Path]:
    """Runs protoc on every file of protos/ and returns the modules written."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos").glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    outputs = [f"--{plugin}={ROOT}" for plugin in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")]
    # protoc finds the plugins of mypy-protobuf on the PATH, where a virtual environment that is not activated is not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, *sources]) != 0:
        raise RuntimeError("protoc failed, see above")
    return sorted(path for path in (ROOT / "protos").glob("*_pb2*.py*") if path.suffix in {".py", ".pyi"})


def build_kernels() -> list[Path]:
    """Compiles the native CPU kernels; an empty list where that is not possible (kernels/native/build.py says why)."""
    return _build_native(ROOT / "kernels" / "native" / "build.py")


def build_wire() -> list[Path]:
    """Compile the native hot wire; an empty list where that is not possible (services/wire/native/build.py)."""
    return _build_native(ROOT / "services" / "wire" / "native" / "build.py")


def _build_native(script: Path) -> list[Path]:
    spec = importlib.util.spec_from_file_location("moonshard_native_build", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [Path(path) for path in module.build()]


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:
    BuildHookInterface = None  # type: ignore[assignment,misc]  # by hand, without hatchling

if BuildHookInterface is not None:

    class BuildHook(BuildHookInterface[Any]):
        """Puts the products into the wheel although git ignores them."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            products = build_protos() + build_kernels() + build_wire()
            build_data["artifacts"] += [f"/{path.relative_to(ROOT)}" for path in products]
            if any(path.suffix == ".so" for path in products):
                build_data["pure_python"] = False
                build_data["infer_tag"] = True


if __name__ == "__main__":
    for product in build_protos() + build_kernels() + build_wire():
        sys.stdout.write(f"{product.relative_to(ROOT)}\n")
