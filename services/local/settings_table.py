"""The table of all MOONSHARD_* variables, generated from the settings classes of the processes."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from services.runtime.settings import PREFIX

# Loaded by name, because attention, expert and vision import torch, which some installations lack.
CLASSES: Mapping[str, str] = {
    "gateway": "gateway.settings.GatewaySettings",
    "tokenizer": "services.tokenizer.settings.TokenizerSettings",
    "vision": "services.vision.settings.VisionSettings",
    "attention": "services.attention.settings.AttentionSettings",
    "expert": "services.expert.settings.ExpertSettings",
    "autoscaler": "services.autoscaler.settings.AutoscalerSettings",
}

HEAD = """\
# Settings

Every process reads its settings once, at start, from variables of the environment. Names that end in `_S` are seconds,
in `_BYTES` bytes. A value that is not valid stops the process with exit code 2 and names the variable; a variable that
is nearly one of these is reported on stderr. This table is written by `moonshard settings`; a test fails when it is
stale.

"""


@dataclass(frozen=True)
class Setting:
    """A variable with one meaning, which one or several processes read.

    values   accepted values, in words
    default  as text; None if the variable is required
    """

    variable: str
    processes: tuple[str, ...]
    values: str
    default: str | None
    description: str


def settings() -> list[Setting]:
    """Return all variables by name; one with several meanings has a row for each.

    Raises ModuleNotFoundError if a library of a process is not installed.
    """
    rows = [(row, process) for process, path in CLASSES.items() for row in _rows(_class(path))]
    rows.sort(key=lambda pair: pair[0])
    merged = []
    for (name, values, default, description), group in groupby(rows, key=lambda pair: pair[0]):
        processes = tuple(process for _, process in group)
        merged.append(Setting(f"{PREFIX}{name}", processes, values, default or None, description))
    return merged


def as_json(table: Sequence[Setting]) -> list[dict[str, Any]]:
    return [asdict(setting) for setting in table]


def as_markdown(table: Sequence[Setting]) -> str:
    """Return the text of services/runtime/SETTINGS.md."""
    lines = ["| variable | read by | values | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for setting in table:
        readers = "all" if len(setting.processes) == len(CLASSES) else ", ".join(setting.processes)
        default = "(required)" if setting.default is None else setting.default
        cells = (f"`{setting.variable}`", readers, setting.values, default, setting.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def _class(path: str) -> type[BaseSettings]:
    module, _, name = path.rpartition(".")
    kind: type[BaseSettings] = getattr(importlib.import_module(module), name)
    return kind


def _rows(kind: type[BaseSettings]) -> Iterator[tuple[str, str, str, str]]:
    """Return name, values, default (empty: required) and description of every field."""
    for name, field in kind.model_fields.items():
        yield name.upper(), _values(field), _default(field), field.description or ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.default
    if field.default_factory is not None or value is None:
        return "none"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def _values(field: FieldInfo) -> str:
    kinds = [kind for kind in get_args(field.annotation) or [field.annotation] if kind is not type(None)]
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(str, kinds))
    if field.annotation is bool:
        return "true, false"
    if get_origin(field.annotation) in {tuple, dict}:
        return "list" if get_origin(field.annotation) is tuple else "JSON"
    numbers = [kind for kind in map(_bare, kinds) if kind in {int, float}]
    if numbers:
        return " ".join(["integer" if numbers[0] is int else "number", *_bounds(field, kinds)])
    return "path" if Path in kinds else "text"


def _bare(kind: Any) -> Any:
    """Return a type without its Annotated."""
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def _bounds(field: FieldInfo, kinds: Sequence[Any]) -> Iterator[str]:
    rules = [*field.metadata, *(rule for kind in kinds for rule in getattr(kind, "__metadata__", ()))]
    for rule in rules:
        if isinstance(rule, annotated_types.Gt):
            yield f"> {rule.gt}"
        elif isinstance(rule, annotated_types.Ge):
            yield f"≥ {rule.ge}"
        elif isinstance(rule, annotated_types.Le):
            yield f"≤ {rule.le}"
