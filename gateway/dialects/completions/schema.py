"""What POST /v1/completions accepts: types and ranges only."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from gateway.dialects.form_fields import FormFields
from gateway.dialects.sampling import SamplingFields
from gateway.http.body import Int, NaturalInt, Opaque

PromptText = Annotated[str, Field(min_length=1)]
PromptIds = Annotated[list[NaturalInt], Field(min_length=1)]


def _form_of(value: object) -> str | None:
    """Return which of its four forms a prompt has, by its first item."""
    match value:
        case str():
            return "~text"
        case [int() | float(), *_]:
            return "~ids"
        case [str(), *_]:
            return "~texts"
        case list():
            return "~lists"
        case _:
            return None


Prompt = Annotated[
    Annotated[PromptText, Tag("~text")]
    | Annotated[PromptIds, Tag("~ids")]
    | Annotated[list[PromptText], Tag("~texts")]
    | Annotated[list[PromptIds], Tag("~lists"), Field(min_length=1)],
    Discriminator(
        _form_of,
        custom_error_type="prompt_form",
        custom_error_message="must be a string, a list of strings, a list of token ids, or a list of such lists",
    ),
]


class CompletionRequest(SamplingFields, FormFields):
    """A completion request: prompts go to the model as they are."""

    model: str
    prompt: Prompt
    max_tokens: NaturalInt | None = Field(None, description="0 only with `echo`: the prompt alone.")
    echo: bool | None = None
    best_of: Annotated[Int, Field(ge=1, le=1)] | None = None
    logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool | None = Field(None, description="No effect: nothing is added to a prompt.")


class TokenizeRequest(Opaque):
    """A text to cut into tokens. With `messages` instead of `prompt` the body is read as a chat request."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = Field(None, description="Whether the text of a special token becomes one.")
    return_token_strs: bool | None = None


class DetokenizeRequest(Opaque):
    """Tokens to put together."""

    model: str | None = None
    tokens: list[NaturalInt]
