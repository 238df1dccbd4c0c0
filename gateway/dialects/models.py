"""The names under which the model is served, and how it is listed."""

from gateway.dialects.service_types import Model, ModelList
from gateway.http.body import quote
from gateway.http.errors import ModelNotFound
from gateway.settings import GatewaySettings

CREATED = 1776643200
CREATED_AT = "2026-04-20T00:00:00Z"


class ModelNames:
    """One model, its name and its aliases."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._names = {settings.model_name, *settings.model_aliases}

    def check(self, name: str) -> None:
        """Raise ModelNotFound unless the model is served under this name."""
        if name not in self._names:
            raise ModelNotFound(
                f"the model {quote(name)} does not exist; {self._settings.model_name} does", field="model"
            )

    def listing(self, context_tokens: int) -> ModelList:
        """Return the body of GET /v1/models: one union of fields for the clients of OpenAI, Anthropic and Kimi."""
        name = self._settings.model_name
        return {
            "object": "list",
            "data": [self.entry(name, context_tokens)],
            "has_more": False,
            "first_id": name,
            "last_id": name,
        }

    def entry(self, name: str, context_tokens: int) -> Model:
        """Return the model under the name of the request."""
        takes_media = bool(self._settings.visions)
        return {
            "id": name,
            "object": "model",
            "type": "model",
            "created": CREATED,
            "created_at": CREATED_AT,
            "display_name": self._settings.model_display_name,
            "lifecycle": "active",
            "owned_by": "moonshotai",
            "root": self._settings.model_aliases[0] if self._settings.model_aliases else name,
            "parent": None,
            "permission": [],
            "capabilities": None,
            "max_input_tokens": context_tokens,
            "max_tokens": context_tokens,
            "max_model_len": context_tokens,
            "context_length": context_tokens,
            "supports_image_in": takes_media,
            "supports_video_in": takes_media,
            "supports_reasoning": True,
            "supports_thinking_type": "both",
        }
