"""Endpoints that count and cut: tokens of a text or a conversation, and back."""

from typing import Any

from fastapi import APIRouter, Request

from gateway.dialects.chat.request import ChatRequest, parse_chat
from gateway.dialects.chat.schema import ChatCompletionRequest
from gateway.dialects.completions.schema import DetokenizeRequest, TokenizeRequest
from gateway.dialects.context import Gateway, call_context, gateway_of
from gateway.http.body import check, quote, read_object
from gateway.http.openapi import json_body
from gateway.request.chat_model import Conversation
from services.runtime.errors import InvalidRequest

router = APIRouter()


@router.post("/tokenize", openapi_extra=json_body(TokenizeRequest, ChatCompletionRequest))
@router.post("/v1/tokenize", openapi_extra=json_body(TokenizeRequest, ChatCompletionRequest))
async def tokenize(request: Request) -> dict[str, Any]:
    """The tokens of a text, or of a conversation as the model would see it."""
    gateway = gateway_of(request)
    call = call_context(request)
    body = await read_object(request, gateway.settings.max_body_bytes)
    return_strings = body.get("return_token_strs")
    if return_strings is not None and not isinstance(return_strings, bool):
        raise InvalidRequest("return_token_strs: must be true or false", field="return_token_strs")
    if body.get("messages") is not None and body.get("prompt") is None:
        # The model's name may be left out here.
        chat = _chat_of({"model": gateway.settings.model_name, **_given(body)}, gateway)
        token_ids = await gateway.pipeline.prompt_ids(_conversation(chat), call)
    else:
        text = check(TokenizeRequest, body)
        _check_model(text.model, gateway)
        special = text.add_special_tokens is not False
        token_ids = await gateway.cluster.tokenize(text.prompt, call, allow_special=special)
    strings = None
    if return_strings:
        texts = await gateway.cluster.token_bytes(token_ids, call)
        strings = [texts[token_id].decode(errors="replace") for token_id in token_ids]
    context_tokens = await gateway.cluster.context_tokens(call)
    return {"count": len(token_ids), "max_model_len": context_tokens, "tokens": token_ids, "token_strs": strings}


@router.post("/detokenize", openapi_extra=json_body(DetokenizeRequest))
@router.post("/v1/detokenize", openapi_extra=json_body(DetokenizeRequest))
async def detokenize(request: Request) -> dict[str, str]:
    """The text of tokens, special ones included."""
    gateway = gateway_of(request)
    call = call_context(request)
    asked = check(DetokenizeRequest, await read_object(request, gateway.settings.max_body_bytes))
    _check_model(asked.model, gateway)
    vocab_size = (await gateway.cluster.describe(call)).vocab_size
    for index, token_id in enumerate(asked.tokens):
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"tokens.{index}: {quote(token_id)} is no token, ids end at {vocab_size - 1}", field=f"tokens.{index}"
            )
    return {"prompt": (await gateway.cluster.detokenize(asked.tokens, call, skip_special=False)).text}


@router.post("/v1/tokenizers/estimate-token-count", openapi_extra=json_body(ChatCompletionRequest))
async def estimate_token_count(request: Request) -> dict[str, Any]:
    """What `usage.prompt_tokens` of the same chat request would be."""
    gateway = gateway_of(request)
    chat = _chat_of(await read_object(request, gateway.settings.max_body_bytes), gateway)
    return {"data": {"total_tokens": await gateway.pipeline.count(_conversation(chat), call_context(request))}}


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _chat_of(body: dict[str, Any], gateway: Gateway) -> ChatRequest:
    chat = parse_chat(body, gateway.settings.max_choices)
    gateway.models.check(chat.model)
    return chat


def _conversation(chat: ChatRequest) -> Conversation:
    assert isinstance(chat.request.conversation, Conversation), "a chat request holds a conversation"
    return chat.request.conversation


def _check_model(name: str | None, gateway: Gateway) -> None:
    if name is not None:
        gateway.models.check(name)
