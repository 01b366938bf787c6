from __future__ import annotations

from hashlib import sha256

import pytest

from service.api.auth import ApiKey, digest_of, find_key, new_key, parse_key, parse_keys

HEX = sha256(b"sk-one").hexdigest()


def test_parses_a_hashed_key_with_name_and_limits() -> None:
    key = parse_key(f"sha256:{HEX} name=ci rpm=60 concurrency=4", hashed=True)
    assert key == ApiKey(digest_of("sk-one"), "ci", 60, 4)
    assert parse_key(f"sha256:{HEX}", hashed=True).name == f"key-{HEX[:8]}"


def test_only_keys_with_the_scope_are_admin_keys() -> None:
    assert parse_key(f"sha256:{HEX} scope=admin name=ops", hashed=True) == ApiKey(
        digest_of("sk-one"), "ops", is_admin=True
    )
    assert not parse_key(f"sha256:{HEX} name=admin", hashed=True).is_admin


def test_plain_key_is_hashed_or_rejected() -> None:
    assert parse_key("sk-one", hashed=False).digest == digest_of("sk-one")
    with pytest.raises(ValueError, match="plain text") as caught:
        parse_key("sk-one", hashed=True)
    assert "sk-one" not in str(caught.value)


@pytest.mark.parametrize(
    "option", ["rpm=0", "rpm=x", "name=", "speed=3", "rpm", "scope=", "scope=root", "admin"]
)
def test_rejects_unknown_key_options(option: str) -> None:
    with pytest.raises(ValueError, match="option"):
        parse_key(f"sha256:{HEX} {option}", hashed=True)


def test_ignores_blank_lines_and_comments() -> None:
    assert len(parse_keys(["", "# a comment", f"  sha256:{HEX}  "], hashed=True)) == 1


def test_finds_the_presented_key() -> None:
    keys = parse_keys(["sk-one", "sk-two"], hashed=False)
    assert find_key(keys, "sk-two") is keys[1]
    assert find_key(keys, "sk-one") is keys[0]
    for wrong in ("", "sk-", "sk-three", HEX, f"sha256:{HEX}", "\ud800"):
        assert find_key(keys, wrong) is None


def test_new_keys_differ() -> None:
    assert len({new_key() for _ in range(20)}) == 20
