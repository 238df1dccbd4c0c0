"""JSON files of a checkpoint as pydantic models; an error is a sentence with file, field, expected and found."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from services.runtime.errors import CheckpointError

STRICT: Final = ConfigDict(strict=True, extra="ignore")
MAX_VALUE_CHARS: Final = 80

# The description of a type is the expectation in its errors.
Size = Annotated[int, Field(ge=1, description="a whole number >= 1")]
Count = Annotated[int, Field(ge=0, description="a whole number >= 0")]
Number = Annotated[float, Field(allow_inf_nan=False, description="a number")]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number > 0")]
NumberAboveOne = Annotated[float, Field(gt=1, allow_inf_nan=False, description="a number > 1")]
Flag = Annotated[bool, Field(description="true or false")]
# Not Literal[False], which accepts 0.
MustBeFalse = Annotated[bool, Field(lt=True, description="false")]
MustBeTrue = Annotated[bool, Field(gt=False, description="true")]

Values = Mapping[str, Any]
Model = TypeVar("Model")


class Section(BaseModel):
    """A JSON object with checked fields; further ones are ignored."""

    model_config = STRICT | {"frozen": True}


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a file with a JSON object. Raises CheckpointError."""
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: expected a readable file, found: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: expected JSON, found: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return values


def check(kind: type[Model], values: Values, file: Path, path: str = "") -> Model:
    """Convert values to a pydantic model or dataclass. Raises CheckpointError for the first bad field.

    path  place of the values in the file, for example "text_config."
    """
    values = _one_spelling(kind, values, file, path)
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = [part for part in first["loc"] if isinstance(part, str)]
        in_list = len(place) < len(first["loc"])
        found = values[place[0]] if in_list else first["input"]
        absent = first["type"] == "missing" and not in_list
        raise refusal(file, path + ".".join(place), _expected(kind, place), found, absent=absent) from error


def section(values: Values, name: str, file: Path, path: str = "") -> Values:
    """Return a nested object. Raises CheckpointError."""
    value = values.get(name)
    if not isinstance(value, Mapping):
        raise refusal(file, path + name, "an object", value, absent=name not in values)
    return value


def refusal(file: Path, field: str, expected: str, found: object, *, absent: bool = False) -> CheckpointError:
    """Return the error for a field, with file, field, expected and found value."""
    words = "no such field" if absent else _shown(found)
    return CheckpointError(f"{file}: field {field}: expected {expected}, found {words}")


def _one_spelling(kind: Any, values: Values, file: Path, path: str) -> Values:
    """Return the values without second spellings of a field; both spellings must have equal values."""
    left_out = set()
    for field in kind.__pydantic_fields__.values():
        first, *others = [name for name in _spellings(field) if values.get(name) is not None] or [""]
        for name in others:
            if values[name] != values[first]:
                raise refusal(file, path + name, f"{_shown(values[first])}, as in {first}", values[name])
        if first:
            left_out |= set(_spellings(field)) - {first}
    return {name: value for name, value in values.items() if name not in left_out}


def _spellings(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else []


def _expected(kind: Any, place: list[str]) -> str:
    for name in place:
        fields: dict[str, FieldInfo] = kind.__pydantic_fields__
        field = next(field for own, field in fields.items() if name == own or name in _spellings(field))
        if field.description is not None:
            return field.description
        kind = field.annotation
    if get_origin(kind) is Literal:
        return " or ".join(json.dumps(value) for value in get_args(kind))
    return "null" if kind is type(None) else "an object"


def _shown(value: object) -> str:
    text = "an object" if isinstance(value, Mapping) else json.dumps(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."
