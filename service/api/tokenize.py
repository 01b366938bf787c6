"""``POST /tokenize``, ``POST /detokenize`` and ``GET /tokenizer_info``, in vLLM's form."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, ValidationError

from service.api.chat.prepare import SHORT_CHARS, render_prompt
from service.api.chat.request import ChatRequest
from service.api.errors import ApiError, api_error_of
from service.api.sampling import TokenId, outside_vocabulary
from service.api.schemas import DetokenizedObject, TokenizedObject, TokenizerInfo
from service.api.state import CurrentServer
from service.api.validation import Ignored, RequestBody
from service.common.json import Json

router = APIRouter(tags=["Tokens"])


class TokenizeRequest(RequestBody):
    """A text, or messages with a chat request's fields for the prompt."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, object]] | None = None
    """As in a chat request. The instruction is included if code would run."""
    return_token_strs: bool = False
    add_special_tokens: Annotated[object, Ignored()] = None
    add_generation_prompt: object = None
    continue_final_message: object = None
    chat_template: object = None
    chat_template_kwargs: object = None
    tools: object = None
    deferral: object = None


class DetokenizeRequest(RequestBody):
    """Token ids."""

    model: str | None = None
    tokens: list[TokenId] = Field(max_length=2**20)


@router.post("/tokenize", responses={200: {"model": TokenizedObject}})
async def tokenize(body: TokenizeRequest, server: CurrentServer) -> Json:
    """Return the token ids of a text, or of a chat request's prompt."""
    server.check_model(body.model or server.model_name)
    tokenizer = server.engine.tokenizer
    if body.messages is not None:
        ids = await render_prompt(server, _chat_request(body, server.model_name))
    elif body.prompt is None:
        raise ApiError(
            400,
            "Send 'prompt' or 'messages'.",
            param="prompt",
            code="missing_required_parameter",
        )
    elif len(body.prompt) <= SHORT_CHARS:
        ids = tokenizer.encode(body.prompt, allow_special=True)
    else:
        ids = await asyncio.to_thread(tokenizer.encode, body.prompt, allow_special=True)
    return {
        "count": len(ids),
        "max_model_len": server.engine.context_length,
        "tokens": ids,
        "token_strs": [tokenizer.decode([token]) for token in ids] if body.return_token_strs else None,
    }


@router.post("/detokenize", responses={200: {"model": DetokenizedObject}})
async def detokenize(body: DetokenizeRequest, server: CurrentServer) -> Json:
    """Return the text of token ids."""
    server.check_model(body.model or server.model_name)
    tokenizer = server.engine.tokenizer
    size = tokenizer.vocab_size
    if wrong := [index for index, token in enumerate(body.tokens) if token >= size]:
        raise outside_vocabulary(f"tokens[{wrong[0]}]", body.tokens[wrong[0]], size)
    return {"prompt": tokenizer.decode(body.tokens)}


@router.get("/tokenizer_info", responses={200: {"model": TokenizerInfo}})
async def tokenizer_info(server: CurrentServer) -> Json:
    """Return the text of the token that ends a text. Evaluation tools use it as the beginning of a prompt."""
    engine = server.engine
    ends = sorted(engine.eos_token_ids)
    return {
        "tokenizer_class": type(engine.tokenizer).__name__,
        "eos_token": engine.tokenizer.decode(ends[:1]) if ends else None,
        "bos_token": None,
        "pad_token": None,
    }


def _chat_request(body: TokenizeRequest, model: str) -> ChatRequest:
    """Return the chat request whose prompt is to be tokenized."""
    fields = body.model_dump(exclude={"prompt", "return_token_strs", "add_special_tokens"}, exclude_none=True)
    fields.setdefault("model", model)
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise api_error_of(first, first["loc"], fields) from None
