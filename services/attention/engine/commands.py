"""Commands to the engine: other threads and the store's tasks queue them, the engine carries them out between steps."""

from dataclasses import dataclass

from services.attention.engine.fetcher import Fetched
from services.attention.engine.generation import Generation
from services.attention.engine.publisher import Published

StoreResult = Fetched | Published


@dataclass(frozen=True)
class Submit:
    generation: Generation


@dataclass(frozen=True)
class Cancel:
    generation: Generation


@dataclass(frozen=True)
class Release:
    """Free the blocks of an offer: another replica has them, or the hold is over."""

    offer: str


@dataclass(frozen=True)
class Settle:
    """Go on with a generation whose store work has ended."""

    generation: Generation
    outcome: StoreResult | BaseException


@dataclass(frozen=True)
class Drain:
    pass


@dataclass(frozen=True)
class Stop:
    pass


Command = Submit | Cancel | Release | Settle | Drain | Stop
