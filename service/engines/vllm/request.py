"""A call in vLLM's own words. The in-process engine and the HTTP API share their names."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final, Literal

from service.engines.base import Sampling

LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]
"""vLLM's setting: logprobs of the model as it is (its default), or of what it draws from, after filters."""

SPACING: Final[Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How llguidance lets JSON be spaced: as models are taught it. Free white space has no end, and models that
would say something else write it until their limit."""


def request_fields(sampling: Sampling, *, max_tokens: int, stop_token_ids: Collection[int]) -> dict[str, Any]:
    """Fields of ``SamplingParams``, and of a request to ``/v1/completions``; JSON throughout.

    Only ``stop_token_ids`` stop, and a stop token is part of the output.
    """
    fields: dict[str, Any] = {
        "max_tokens": max_tokens,
        "stop_token_ids": sorted(stop_token_ids),
        "ignore_eos": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.min_tokens:
        fields["min_tokens"] = sampling.min_tokens
    if sampling.logprobs:
        fields["logprobs"] = sampling.top_logprobs
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    if sampling.json_schema is not None:
        # Only the backend "guidance" reads the hint, others pass over it.
        fields["structured_outputs"] = {"json": {**json.loads(sampling.json_schema), "x-guidance": SPACING}}
    return fields


def tells_logprobs(sampling: Sampling, mode: LogprobsMode) -> bool:
    """Whether vLLM's logprobs are those after temperature, penalties and bias, before top-p, top-k and min-p.

    Raw ones know no temperature, so it must be 1 (or 0: then it counts as 1). Processed ones are spread over
    what the filters leave, so there must be none. vLLM has no mode between.
    """
    is_greedy = sampling.temperature == 0
    if mode == "raw_logprobs":
        return (is_greedy or sampling.temperature == 1) and not sampling.has_penalties
    return is_greedy or (sampling.top_p == 1 and sampling.top_k == 0 and sampling.min_p == 0)
