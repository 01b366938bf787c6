"""Requests in vLLM's format, shared by the in-process and the remote engine."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from service.engines.base import JSON_SPACING, Sampling
from service.engines.settings import LogprobsMode


def request_fields(sampling: Sampling, *, max_tokens: int, stop_token_ids: Collection[int]) -> dict[str, Any]:
    """Return the fields of ``SamplingParams``, equal to those of a ``/v1/completions`` request. All values
    are JSON.

    Only ``stop_token_ids`` end the reply, and the stop token is part of the output.
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
    if sampling.prompt_logprobs is not None:
        fields["prompt_logprobs"] = sampling.prompt_logprobs
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias}
    if sampling.json_schema is not None:
        # Only the backend "guidance" reads this option; others ignore it.
        fields["structured_outputs"] = {
            "json": {**json.loads(sampling.json_schema), "x-guidance": JSON_SPACING}
        }
    elif (structure := sampling.structure) is not None:
        kind, text = structure
        fields["structured_outputs"] = {kind: text}
    return fields


def logprobs_are_exact(sampling: Sampling, mode: LogprobsMode) -> bool:
    """Whether vLLM's logprobs match `TokenChunk`: after temperature, penalties and bias, before top-p, top-k
    and min-p.

    Raw logprobs ignore the temperature, so it must be 1 (or 0, which counts as 1), without penalties.
    Processed logprobs are normalised after the filters, so there must be no filter. vLLM has no mode in
    between.
    """
    is_greedy = sampling.temperature == 0
    if mode == "raw_logprobs":
        return (is_greedy or sampling.temperature == 1) and not sampling.has_penalties
    return is_greedy or (sampling.top_p == 1 and sampling.top_k == 0 and sampling.min_p == 0)
