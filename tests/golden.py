"""The golden cases of tests/data/."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "data"


def read_golden(name: str) -> dict[str, Any]:
    """Read one file of golden cases; tests/data/README.md says where they come from."""
    content: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return content
