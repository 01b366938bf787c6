"""How a chat request is sampled: as it asks, else as the checkpoint does; refused if the engine can't."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from service.api.chat.request import ChatRequest
from service.api.errors import ApiError
from service.engines.base import Engine, Sampling, unsupported

Number = TypeVar("Number", int, float)

_PARAMS = {"json_schema": "response_format"}


def sampling_of(request: ChatRequest, default: Sampling, room: int, engine: Engine) -> Sampling:
    """The sampling of one choice.

    Args:
        request: what the client asks for.
        default: what holds where it says nothing.
        room: tokens that may follow the prompt.
        engine: has to honour it.

    Raises:
        ApiError: 400 that names the field which the engine can't honour.
    """
    sampling = replace(
        default,
        temperature=_given(request.temperature, default.temperature),
        top_p=_given(request.top_p, default.top_p),
        top_k=max(_given(request.top_k, default.top_k), 0),
        min_p=_given(request.min_p, default.min_p),
        seed=request.seed,
        max_tokens=min(_given(request.token_limit, room), room),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        presence_penalty=_given(request.presence_penalty, default.presence_penalty),
        frequency_penalty=_given(request.frequency_penalty, default.frequency_penalty),
        repetition_penalty=_given(request.repetition_penalty, default.repetition_penalty),
        logit_bias=tuple((int(token), bias) for token, bias in (request.logit_bias or {}).items()),
        json_schema=request.json_schema,
        adapter=None if request.model == engine.model_name else request.model,
    )
    if missing := unsupported(engine, sampling):
        param = _PARAMS.get(missing[0], missing[0])
        raise ApiError(
            400,
            f"'{param}': the engine of this server can't honour it; leave it out.",
            param=param,
            code="unsupported_parameter",
        )
    return sampling


def _given(asked: Number | None, default: Number) -> Number:
    return default if asked is None else asked
