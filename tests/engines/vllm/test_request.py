from __future__ import annotations

import json
from typing import Any

import pytest

from service.engines.base import Sampling
from service.engines.vllm.request import logprobs_are_exact, request_fields


def test_every_field_reaches_vllm() -> None:
    sampling = Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=-3,
        max_tokens=99,
        min_tokens=4,
        top_logprobs=4,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.3,
        logit_bias=((5, -1.5),),
        json_schema='{"type": "object"}',
    )
    fields = request_fields(sampling, max_tokens=10, stop_token_ids={9, 2})
    assert json.loads(json.dumps(fields)) == {
        "max_tokens": 10,
        "min_tokens": 4,
        "stop_token_ids": [2, 9],
        "ignore_eos": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": -3,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.3,
        "logprobs": 4,
        "logit_bias": {"5": -1.5},
        "structured_outputs": {
            "json": {
                "type": "object",
                "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
            }
        },
    }


def test_unset_fields_are_omitted() -> None:
    fields = request_fields(Sampling(logprobs=False), max_tokens=1, stop_token_ids=())
    assert not {"logprobs", "logit_bias", "structured_outputs"} & fields.keys()


@pytest.mark.parametrize(
    ("options", "raw", "processed"),
    [
        ({}, True, True),
        ({"top_p": 0.7}, True, False),
        ({"top_k": 5}, True, False),
        ({"min_p": 0.1}, True, False),
        ({"temperature": 0.6}, False, True),
        ({"temperature": 0.6, "top_p": 0.9}, False, False),
        ({"temperature": 0, "top_p": 0.9}, True, True),
        ({"frequency_penalty": 1}, False, True),
        ({"temperature": 0, "logit_bias": ((1, 1.0),)}, False, True),
    ],
)
def test_logprobs_are_exact(options: dict[str, Any], raw: bool, processed: bool) -> None:
    sampling = Sampling(**options)
    assert logprobs_are_exact(sampling, "raw_logprobs") is raw
    assert logprobs_are_exact(sampling, "processed_logprobs") is processed
