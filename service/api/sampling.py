"""Sampling fields that requests share, and their conversion to the engine's `Sampling`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, Field

from service.api.errors import ApiError
from service.api.structured_outputs import Structure, StructuredRequest
from service.api.validation import Ignored, Label, RequestModel, only
from service.engines.base import Engine, Sampling, unsupported

MAX_STOPS = 16
_LEAST_TOP_P: Final = 1e-6
"""For a ``top_p`` of 0, which engines don't accept. Only the most likely token is left, too."""

Number = TypeVar("Number", int, float)


def _stops(value: object) -> object:
    """Wrap a single string in a list and drop empty strings, which stop nothing."""
    stops = [value] if isinstance(value, str) else value
    return [stop for stop in stops if stop != ""] if isinstance(stops, list) else stops


StopString = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_stops, json_schema_input_type=str | list[str]),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasedId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
TopP = Annotated[float, Field(ge=0, le=1)]
"""Mass of the most likely tokens to sample from; 0 for the most likely one alone."""
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class StreamOptions(RequestModel):
    include_usage: bool = False
    include_obfuscation: Annotated[object, Ignored(False)] = None


class SamplingRequest(StructuredRequest):
    """Sampling fields of OpenAI, and those of vLLM and llama.cpp.

    An unsupported field is declared with ``only`` and accepted with neutral values, because ignoring another
    value would change the reply.
    """

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: TopP | None = None
    top_k: int | None = Field(default=None, ge=-1)
    """0 or -1 for no limit."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stops | None = None
    """Strings that end the reply; they are not returned. Pending code then never runs."""
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=1024)
    """Tokens that end the reply like the model's own end tokens; they are not returned."""
    ignore_eos: bool | None = None
    """Don't end the reply at the model's own end of turn."""
    min_tokens: int | None = Field(default=None, ge=0)
    """Minimum number of sampled tokens. If code runs, the execute marker isn't sampled earlier either."""
    n: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    repeat_penalty: float | None = Field(default=None, gt=0, le=2)
    """llama.cpp's name of ``repetition_penalty``, which takes precedence."""
    logit_bias: dict[BiasedId, Bias] | None = Field(default=None, max_length=1024)
    do_sample: bool | None = None
    """False for greedy decoding, unless a temperature is set."""
    n_predict: int | None = Field(default=None, ge=-1)
    """llama.cpp's name of ``max_tokens``; -1 for no limit."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Transformers' name of ``max_tokens``."""
    user: Label | None = None

    allowed_token_ids: Annotated[object, only([])] = None
    bad_words: Annotated[object, only([])] = None
    dry_multiplier: Annotated[object, only(0)] = None
    dynatemp_range: Annotated[object, only(0)] = None
    include_stop_str_in_output: Annotated[object, only(False)] = None
    length_penalty: Annotated[object, only(1)] = None
    logits_processors: Annotated[object, only([])] = None
    lora: Annotated[object, only([])] = None
    mirostat: Annotated[object, only(0)] = None
    prompt_logprobs: Annotated[object, only(False)] = None
    return_token_ids: Annotated[object, only(False)] = None
    return_tokens_as_token_ids: Annotated[object, only(False)] = None
    skip_special_tokens: Annotated[object, only(True)] = None
    tfs_z: Annotated[object, only(1)] = None
    top_a: Annotated[object, only(0)] = None
    truncate_prompt_tokens: Annotated[object, only()] = None
    typical_p: Annotated[object, only(1)] = None
    use_beam_search: Annotated[object, only(False)] = None
    xtc_probability: Annotated[object, only(0)] = None

    cache_prompt: Annotated[object, Ignored(True)] = None
    cache_salt: Annotated[object, Ignored()] = None
    priority: Annotated[object, Ignored(0)] = None
    request_id: Annotated[object, Ignored()] = None
    spaces_between_special_tokens: Annotated[object, Ignored(True)] = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def token_limit(self) -> int | None:
        """Limit on sampled tokens, if the client set one."""
        limit = self.max_new_tokens or self.n_predict
        return limit if limit is None or limit > 0 else None

    def without_effect(self) -> Iterator[str]:
        if self.stream_options is not None and not self.stream:
            yield "stream_options"


EFFORT_TOKENS: Final = {"low": 1024, "medium": 8192}
"""Most tokens of a thought, by reasoning effort. Higher efforts have no limit."""
TokenBudget = Annotated[int, Field(ge=-1, le=2**31)]
"""Most tokens of a thought: 0 for none, -1 for no limit."""


def enables_thinking(effort: str | None) -> bool | None:
    """Return whether a reasoning effort turns thinking on; None without one."""
    return None if effort is None else effort not in ("none", "minimal")


def end_token_ids(request: SamplingRequest, engine: Engine) -> frozenset[int] | None:
    """Return the tokens that end a reply to ``request``; None for the engine's own."""
    if not (request.stop_token_ids or request.ignore_eos):
        return None
    own = frozenset() if request.ignore_eos else engine.eos_token_ids
    return own | frozenset(request.stop_token_ids or ())


def sampling_of(
    request: SamplingRequest,
    default: Sampling,
    room: int,
    engine: Engine,
    *,
    model: str,
    logprobs: bool,
    top_logprobs: int,
    prompt_logprobs: int | None = None,
    structure: Structure | None = None,
) -> Sampling:
    """Return the sampling of one choice.

    Args:
        request: the client's request.
        default: values of fields that the request doesn't set.
        room: number of tokens that may follow the prompt.
        engine: must support the result.
        model: the model in the request: the engine's own or one of its adapters.
        logprobs: report log-probabilities.
        top_logprobs: number of alternatives to report for each token.
        prompt_logprobs: number of alternatives to report for each token of the prompt; None for no
            log-probabilities of the prompt.
        structure: constraint on the text of the reply.

    Raises:
        ApiError: 400 with the name of a field that the engine doesn't support.
    """
    _check_ids(request, engine)
    constraint: dict[str, Any] = {} if structure is None else {structure.kind: structure.text}
    greedy = request.do_sample is False and request.temperature is None
    penalty = request.repeat_penalty if request.repetition_penalty is None else request.repetition_penalty
    sampling = replace(
        default,
        temperature=0 if greedy else _given(request.temperature, default.temperature),
        top_p=max(_given(request.top_p, default.top_p), _LEAST_TOP_P),
        top_k=max(_given(request.top_k, default.top_k), 0),
        min_p=_given(request.min_p, default.min_p),
        seed=request.seed,
        max_tokens=min(_given(request.token_limit, room), room),
        min_tokens=request.min_tokens or 0,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        prompt_logprobs=prompt_logprobs,
        presence_penalty=_given(request.presence_penalty, default.presence_penalty),
        frequency_penalty=_given(request.frequency_penalty, default.frequency_penalty),
        repetition_penalty=_given(penalty, default.repetition_penalty),
        logit_bias=tuple((int(token), bias) for token, bias in (request.logit_bias or {}).items()),
        **constraint,
        adapter=None if model == engine.model_name else model,
    )
    if sampling.min_tokens > sampling.max_tokens:
        message = f"'min_tokens': this request samples at most {sampling.max_tokens} tokens."
        raise ApiError(400, message, param="min_tokens", code="invalid_value")
    if missing := unsupported(engine, sampling):
        param = {"prompt_logprobs": "echo"}.get(missing[0], missing[0])
        if param == "repetition_penalty" and request.repetition_penalty is None:
            param = "repeat_penalty"
        if structure is not None and structure.kind == missing[0]:
            param = structure.param
        raise ApiError(
            400,
            f"'{param}': not supported by this server's engine; remove it.",
            param=param,
            code="unsupported_parameter",
        )
    return sampling


def _check_ids(request: SamplingRequest, engine: Engine) -> None:
    """Raise for token ids outside of the vocabulary, which would make the engine fail."""
    if not (request.logit_bias or request.stop_token_ids):
        return
    size = engine.tokenizer.vocab_size
    for token in request.logit_bias or ():
        if int(token) >= size:
            raise outside_vocabulary("logit_bias", int(token), size)
    for index, token_id in enumerate(request.stop_token_ids or ()):
        if token_id >= size:
            raise outside_vocabulary(f"stop_token_ids[{index}]", token_id, size)


def outside_vocabulary(param: str, token_id: int, size: int) -> ApiError:
    """Return the error for a token id that is not in the vocabulary."""
    message = f"'{param}': token id {token_id} is outside of the vocabulary, 0 to {size - 1}."
    return ApiError(400, message, param=param, code="invalid_value")


def _given(asked: Number | None, default: Number) -> Number:
    return default if asked is None else asked
