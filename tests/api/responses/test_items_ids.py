from __future__ import annotations

import pytest

from service.api.responses.items import (
    input_item_id,
    is_response_id,
    new_response_id,
    output_item_id,
    response_of,
)


def test_item_id_contains_its_response() -> None:
    response_id = new_response_id()
    assert response_of(output_item_id("msg", response_id, 3)) == response_id
    assert response_of(input_item_id("fc", response_id, 12)) == response_id
    assert output_item_id("msg", response_id, 3) != input_item_id("msg", response_id, 3)


@pytest.mark.parametrize("foreign", ["", "msg_1", "msg_" + "g" * 32 + "_0", "resp_" + "0" * 32, "0" * 99])
def test_foreign_item_id_has_no_response(foreign: str) -> None:
    assert response_of(foreign) is None


def test_recognizes_response_ids() -> None:
    assert is_response_id(new_response_id())
    assert not any(map(is_response_id, ("", "resp_", "resp_" + "g" * 32, new_response_id() + "0", "\0")))


def test_response_ids_are_unique() -> None:
    assert len({new_response_id() for _ in range(100)}) == 100
