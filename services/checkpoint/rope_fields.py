"""The rotary position embedding in config.json: `rope_scaling` as released, `rope_parameters` in transformers 5."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, Field
from pydantic.dataclasses import dataclass

from services.checkpoint.json_fields import (
    STRICT,
    Number,
    PositiveNumber,
    Section,
    Size,
    Values,
    check,
    refusal,
    section,
)

DEFAULT_THETA: Final = 10000.0  # transformers' default
SECTIONS: Final = ("rope_scaling", "rope_parameters")
# transformers supports other values of these fields; only these defaults are served.
_FIXED: Final = {"attention_factor": 1, "partial_rotary_factor": 1, "truncate": True}


@dataclass(frozen=True, config=STRICT)
class YarnConfig:
    """YaRN stretches `original_max_position_embeddings` by `factor`."""

    factor: PositiveNumber
    beta_fast: PositiveNumber
    beta_slow: PositiveNumber
    mscale: Number
    mscale_all_dim: PositiveNumber
    original_max_position_embeddings: Size


class _Kind(Section):
    rope_type: Annotated[Literal["default", "yarn"], Field(validation_alias=AliasChoices("rope_type", "type"))] = (
        "default"
    )


def read_rope(text: Values, file: Path, path: str) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of TextConfig, from a language model's section at `path`.

    Raises CheckpointError if two spellings differ, because following one of them could be silently wrong.
    """
    found = {name: _read_section(text, name, file, path) for name in SECTIONS if text.get(name) is not None}
    if not found:
        return {"rope_theta": text.get("rope_theta", DEFAULT_THETA), "rope_scaling": None}
    first, *others = found.values()
    if any(other != first for other in others):
        raise refusal(file, f"{path}rope_parameters", "the same as rope_scaling", text["rope_parameters"])
    return first


def _read_section(text: Values, name: str, file: Path, path: str) -> dict[str, Any]:
    values, path_here = section(text, name, file, path), f"{path}{name}."
    theta = values.get("rope_theta", text.get("rope_theta", DEFAULT_THETA))
    if text.get("rope_theta", theta) != theta:
        raise refusal(file, f"{path_here}rope_theta", f"{text['rope_theta']}, as in {path}rope_theta", theta)
    for fixed, value in _FIXED.items():
        if values.get(fixed) not in (None, value):
            raise refusal(file, path_here + fixed, f"{value}".lower(), values[fixed])
    if "factor" in values and not {"rope_type", "type"} & values.keys():
        raise refusal(file, f"{path_here}rope_type", '"default" or "yarn"', None, absent=True)
    kind = check(_Kind, values, file, path_here).rope_type
    return {"rope_theta": theta, "rope_scaling": _read_yarn(text, values, file, path_here) if kind == "yarn" else None}


def _read_yarn(text: Values, values: Values, file: Path, path: str) -> YarnConfig:
    defaults = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": text.get("max_position_embeddings"),
    }
    yarn = check(
        YarnConfig, defaults | {name: value for name, value in values.items() if value is not None}, file, path
    )
    if yarn.mscale != yarn.mscale_all_dim:
        # cos and sin would be multiplied by the ratio of both; only a ratio of one is implemented.
        raise refusal(file, f"{path}mscale", f"{yarn.mscale_all_dim}", yarn.mscale)
    return yarn
