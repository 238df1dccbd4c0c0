"""Lists of objects that say in `type` what they are, with room for kinds that are known but not read."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from gateway.http.body import Opaque


def kind_in(*kinds: str) -> Callable[[object], str]:
    """Return a discriminator: the tag `~KIND` for these, `~other` for everything else.

    The sign keeps tags apart from names of fields, which an error's path must not confuse.
    """

    def kind_of(value: object) -> str:
        kind = value.get("type") if isinstance(value, dict) else None
        return f"~{kind}" if isinstance(kind, str) and kind in kinds else "~other"

    return kind_of


def _refuse(_: str) -> str:
    raise PydanticCustomError("kind", "this kind is not supported here")


class Refused(Opaque):
    """The member for `~other` where no other kind is accepted: fails, and names `type`."""

    type: Annotated[str, AfterValidator(_refuse)]


class LeftOut(Opaque):
    """A part that is accepted without an effect; the header of the answer names its kind."""

    type: str
