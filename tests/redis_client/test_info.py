"""The reply to INFO."""

import pytest

from sesiones.redis_client.info import Info

REPLY = (
    b"# Server\r\nredis_version:7.0.15\r\n\r\n# Memory\r\nused_memory:12\r\nexecutable:/a:b\xff\r\n"
)


def test_fields_are_read_without_the_headings() -> None:
    fields = {"redis_version": "7.0.15", "used_memory": "12", "executable": "/a:b\ufffd"}
    assert Info.parse(REPLY) == fields


@pytest.mark.parametrize(
    ("reply", "product"),
    [
        (REPLY, ("Redis", "7.0.15")),
        (b"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1\r\n", ("Valkey", "8.1")),
        (b"", ("Redis", None)),
    ],
)
def test_product_is_told_by_its_own_version(reply: bytes, product: tuple[str, str | None]) -> None:
    assert Info.parse(reply).product == product


def test_field_that_is_missing_is_not_known() -> None:
    info = Info.parse(b"")
    assert (info.number("evicted_keys"), info.eviction_policy) == (0, None)
