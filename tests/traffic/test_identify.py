"""Who is calling, read from a request's headers."""

from __future__ import annotations

import pytest

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.identify import HeadReader

Headers = list[tuple[bytes, bytes]]

KEYS: dict[str, tuple[Headers, str | None]] = {
    "none": ([], None),
    "bearer": ([(b"authorization", b"Bearer sk-1")], "sk-1"),
    "bearer in small letters": ([(b"authorization", b"bearer sk-1")], "sk-1"),
    "bearer in capitals": ([(b"authorization", b"BEARER sk-1")], "sk-1"),
    "space around the key": ([(b"authorization", b"Bearer   sk-1 ")], "sk-1"),
    "another scheme": ([(b"authorization", b"Basic sk-1")], None),
    "another scheme, and a key": ([(b"authorization", b"Basic x"), (b"x-api-key", b"sk-2")], "sk-2"),
    "no scheme": ([(b"authorization", b"sk-1")], None),
    "an empty bearer, and a key": ([(b"authorization", b"Bearer "), (b"x-api-key", b"sk-2")], "sk-2"),
    "x-api-key": ([(b"x-api-key", b"sk-2")], "sk-2"),
    "api-key": ([(b"api-key", b"sk-3")], "sk-3"),
    "Azure's gateway": ([(b"ocp-apim-subscription-key", b"sk-4")], "sk-4"),
    "Google's": ([(b"x-goog-api-key", b"sk-5")], "sk-5"),
    "one set in the settings": ([(b"x-team-key", b"sk-6")], "sk-6"),
    "an empty one": ([(b"x-api-key", b" ")], None),
    "odd bytes": ([(b"x-api-key", b"sk-\xff")], "sk-\xff"),
    "authorization comes first": ([(b"x-api-key", b"sk-2"), (b"authorization", b"Bearer sk-1")], "sk-1"),
    "x-api-key comes before api-key": ([(b"api-key", b"sk-3"), (b"x-api-key", b"sk-2")], "sk-2"),
    "api-key comes before Azure's": ([(b"ocp-apim-subscription-key", b"sk-4"), (b"api-key", b"sk-3")], "sk-3"),
    "Azure's comes before Google's": ([(b"x-goog-api-key", b"5"), (b"ocp-apim-subscription-key", b"4")], "4"),
    "the one of the settings comes last": ([(b"x-team-key", b"sk-6"), (b"x-goog-api-key", b"sk-5")], "sk-5"),
}


@pytest.mark.parametrize(("headers", "key"), KEYS.values(), ids=KEYS)
def test_the_key_is_read_from_the_first_header_that_has_one(headers: Headers, key: str | None) -> None:
    assert HeadReader("X-Team-Key").read(headers).api_key == key


def test_without_the_setting_no_further_header_is_read() -> None:
    assert HeadReader().read([(b"x-team-key", b"sk-6")]).api_key is None


REFUSED: dict[str, tuple[Headers, str]] = {
    "two Authorizations": ([(b"authorization", b"Bearer a")] * 2, "duplicate_header"),
    "two keys of one header": ([(b"x-api-key", b"a"), (b"x-api-key", b"b")], "duplicate_header"),
    "two of the header of the settings": ([(b"x-team-key", b"a"), (b"x-team-key", b"b")], "duplicate_header"),
    "two types": ([(b"content-type", b"application/json"), (b"content-type", b"a/b")], "duplicate_header"),
    "two codings": ([(b"content-encoding", b"gzip"), (b"content-encoding", b"gzip")], "duplicate_header"),
    "two lengths": ([(b"content-length", b"1"), (b"content-length", b"1")], "duplicate_header"),
    "another method": ([(b"x-http-method-override", b"POST")], "method_override"),
    "another method, Microsoft's": ([(b"x-http-method", b"POST")], "method_override"),
    "another method, IBM's": ([(b"x-method-override", b"POST")], "method_override"),
}


@pytest.mark.parametrize(("headers", "code"), REFUSED.values(), ids=REFUSED)
def test_headers_that_what_stands_behind_might_read_otherwise_are_refused(headers: Headers, code: str) -> None:
    with pytest.raises(UnreadableRequestError) as raised:
        HeadReader("x-team-key").read(headers)
    assert (raised.value.status, raised.value.code) == (400, code)


def test_two_accepts_are_nothing_to_worry_about() -> None:
    head = HeadReader().read([(b"accept", b"text/html"), (b"accept", b"application/problem+json")])
    assert head.accept == b"application/problem+json"


LENGTHS = {"none": (None, -1), "zero": (b"0", 0), "some": (b"17", 17), "no number": (b"+1", -1),
           "without end": (b"9" * 5000, -1), "empty": (b"", -1)}  # fmt: skip


@pytest.mark.parametrize(("value", "declared_bytes"), LENGTHS.values(), ids=LENGTHS)
def test_the_declared_length_is_read_or_unknown(value: bytes | None, declared_bytes: int) -> None:
    headers = [] if value is None else [(b"content-length", value)]
    assert HeadReader().read(headers).declared_bytes == declared_bytes


def test_what_else_the_gate_needs_is_read_in_the_same_pass() -> None:
    head = HeadReader().read(
        [(b"host", b"x"), (b"content-type", b"a/b"), (b"content-encoding", b"gzip"), (b"upgrade", b"WebSocket")]
    )
    assert (head.content_type, head.content_encoding, head.accept, head.upgrades) == (b"a/b", b"gzip", b"", True)
    assert not HeadReader().read([(b"connection", b"close")]).upgrades
