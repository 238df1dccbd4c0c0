"""Which type the answer of each operation has, for the OpenAPI document."""

from collections.abc import Mapping

from gateway.dialects.chat.answer_types import ChatCompletion
from gateway.dialects.completions.answer_types import TextCompletion
from gateway.dialects.messages.answer_types import AssistantMessage, TokenCount
from gateway.dialects.responses.answer_types import Response
from gateway.dialects.service_types import (
    DeletedFile,
    EstimatedTokens,
    FileList,
    Health,
    Model,
    ModelList,
    PromptText,
    TokenList,
    Version,
)
from gateway.request.files import File

# By lower-case method and path.
ANSWERS: Mapping[tuple[str, str], type] = {
    ("post", "/v1/chat/completions"): ChatCompletion,
    ("post", "/v1/completions"): TextCompletion,
    ("post", "/v1/messages"): AssistantMessage,
    ("post", "/anthropic/v1/messages"): AssistantMessage,
    ("post", "/v1/messages/count_tokens"): TokenCount,
    ("post", "/anthropic/v1/messages/count_tokens"): TokenCount,
    ("post", "/v1/responses"): Response,
    ("get", "/v1/models"): ModelList,
    ("get", "/v1/models/{name}"): Model,
    ("post", "/tokenize"): TokenList,
    ("post", "/v1/tokenize"): TokenList,
    ("post", "/detokenize"): PromptText,
    ("post", "/v1/detokenize"): PromptText,
    ("post", "/v1/tokenizers/estimate-token-count"): EstimatedTokens,
    ("post", "/v1/files"): File,
    ("get", "/v1/files"): FileList,
    ("get", "/v1/files/{file_id}"): File,
    ("delete", "/v1/files/{file_id}"): DeletedFile,
    ("get", "/version"): Version,
    ("get", "/health"): Health,
    ("get", "/ping"): Health,
}
