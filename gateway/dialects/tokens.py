"""Endpoints that count and cut: tokens of a text or a conversation, and back."""

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.dialects.chat.request import ChatRequest, parse_chat
from gateway.dialects.chat.schema import ChatCompletionRequest
from gateway.dialects.completions.schema import DetokenizeRequest, TokenizeRequest
from gateway.dialects.context import Gateway, call_context, gateway_of
from gateway.dialects.service_types import EstimatedTokens, PromptText, TokenList
from gateway.http.body import check, quote
from gateway.http.openapi import json_body
from gateway.http.routes import ApiRoute, json_response
from gateway.request.chat_model import Conversation, RawPrompts
from services.runtime.errors import InvalidRequest


async def tokenize(request: Request) -> Response:
    """Return the tokens of a text, or of a conversation as the model would see it."""
    gateway = gateway_of(request)
    call = call_context(request)
    asked, return_strings = await gateway.bodies.read_json(request, partial(_parse_tokenize, gateway=gateway))
    if isinstance(asked, ChatRequest):
        token_ids = await gateway.pipeline.prompt_ids(_conversation(asked), call)
    else:
        gateway.pipeline.refuse_too_long(RawPrompts((asked.prompt,)))
        special = asked.add_special_tokens is not False
        token_ids = await gateway.cluster.tokenize(asked.prompt, call, allow_special=special)
    strings = None
    if return_strings:
        texts = await gateway.cluster.token_bytes(token_ids, call)
        strings = [texts[token_id].decode(errors="replace") for token_id in token_ids]
    context_tokens = await gateway.cluster.context_tokens(call)
    listed: TokenList = {
        "count": len(token_ids),
        "max_model_len": context_tokens,
        "tokens": token_ids,
        "token_strs": strings,
    }
    return json_response(listed)


async def detokenize(request: Request) -> Response:
    """Return the text of tokens, special ones included."""
    gateway = gateway_of(request)
    call = call_context(request)
    asked = await gateway.bodies.read_json(request, partial(check, DetokenizeRequest))
    _check_model(asked.model, gateway)
    vocab_size = (await gateway.cluster.describe(call)).vocab_size
    for index, token_id in enumerate(asked.tokens):
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"tokens.{index}: {quote(token_id)} is no token, ids end at {vocab_size - 1}", field=f"tokens.{index}"
            )
    text: PromptText = {"prompt": (await gateway.cluster.detokenize(asked.tokens, call, skip_special=False)).text}
    return json_response(text)


async def estimate_token_count(request: Request) -> Response:
    """Return what `usage.prompt_tokens` of the same chat request would be."""
    gateway = gateway_of(request)
    chat = await gateway.bodies.read_json(request, partial(_chat_of, gateway=gateway))
    count = await gateway.pipeline.count(_conversation(chat), call_context(request))
    estimate: EstimatedTokens = {"data": {"total_tokens": count}}
    return json_response(estimate)


def _parse_tokenize(body: dict[str, Any], gateway: Gateway) -> tuple[ChatRequest | TokenizeRequest, bool]:
    """Return what is to be cut, and whether the tokens are wanted as text, too."""
    return_strings = body.get("return_token_strs")
    if return_strings is not None and not isinstance(return_strings, bool):
        raise InvalidRequest("return_token_strs: must be true or false", field="return_token_strs")
    if body.get("messages") is not None and body.get("prompt") is None:
        # The model's name may be left out here, and this field is none of a chat's.
        named = {"model": gateway.settings.model_name, **_given(body)}
        named.pop("return_token_strs", None)
        return _chat_of(named, gateway), bool(return_strings)
    text = check(TokenizeRequest, body)
    _check_model(text.model, gateway)
    return text, bool(return_strings)


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _chat_of(body: dict[str, Any], gateway: Gateway) -> ChatRequest:
    refuse_unknown = gateway.settings.unknown_fields == "refuse"
    chat = parse_chat(body, gateway.settings.max_choices, refuse_unknown=refuse_unknown)
    gateway.models.check(chat.model)
    return chat


def _conversation(chat: ChatRequest) -> Conversation:
    assert isinstance(chat.request.conversation, Conversation), "a chat request holds a conversation"
    return chat.request.conversation


def _check_model(name: str | None, gateway: Gateway) -> None:
    if name is not None:
        gateway.models.check(name)


_TOKENIZE, _DETOKENIZE = json_body(TokenizeRequest, ChatCompletionRequest), json_body(DetokenizeRequest)
ROUTES = (
    ApiRoute("POST", "/tokenize", tokenize, body=_TOKENIZE),
    ApiRoute("POST", "/v1/tokenize", tokenize, body=_TOKENIZE),
    ApiRoute("POST", "/detokenize", detokenize, body=_DETOKENIZE),
    ApiRoute("POST", "/v1/detokenize", detokenize, body=_DETOKENIZE),
    ApiRoute(
        "POST",
        "/v1/tokenizers/estimate-token-count",
        estimate_token_count,
        body=json_body(ChatCompletionRequest),
    ),
)
