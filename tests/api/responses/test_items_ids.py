from __future__ import annotations

import pytest

from service.api.responses.items import (
    input_item_id,
    is_response_id,
    new_response_id,
    output_item_id,
    response_of,
)


def test_an_items_id_leads_to_its_response() -> None:
    response_id = new_response_id()
    assert response_of(output_item_id("msg", response_id, 3)) == response_id
    assert response_of(input_item_id("fc", response_id, 12)) == response_id
    assert output_item_id("msg", response_id, 3) != input_item_id("msg", response_id, 3)


@pytest.mark.parametrize("foreign", ["", "msg_1", "msg_" + "g" * 32 + "_0", "resp_" + "0" * 32, "0" * 99])
def test_an_id_that_is_not_ours_leads_nowhere(foreign: str) -> None:
    assert response_of(foreign) is None


def test_what_could_be_the_id_of_a_response() -> None:
    assert is_response_id(new_response_id())
    assert not any(map(is_response_id, ("", "resp_", "resp_" + "g" * 32, new_response_id() + "0", "\0")))


def test_ids_are_new_each_time() -> None:
    assert len({new_response_id() for _ in range(100)}) == 100
