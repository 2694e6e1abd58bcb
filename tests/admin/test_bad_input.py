"""Bad input: whatever a field is sent with, the answer is a 4xx of the documented shape, and nothing is changed by it.

Over HTTP, through a whole gate; what the store holds is compared byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.harness import MASTER_KEY, Stage, empty, staged

from llmweir.key_records import UNUSED_FIELDS as UNUSED_OF_KEYS
from llmweir.key_records import KeyRegeneration, KeyUpdate, NewKey
from llmweir.record_fields import READ_ONLY
from llmweir.records import UNUSED_FIELDS, NewUser, UserUpdate

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMIN = {"authorization": f"Bearer {MASTER_KEY}"}
SECRET = "s3cr3t"
HUGE = "1" + "0" * 19
KEY = "sk-1234567890123456"


def nested(depth: int, opening: str, inmost: str, closing: str) -> str:
    return opening * depth + inmost + closing * depth


VALUES = {
    "whole": "5",
    "fraction": "1.5",
    "negative": "-1",
    "NaN": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "1e400": "1e400",
    "10^19": HUGE,
    "5000 digits": "9" * 5000,
    "true": "true",
    "text": f'"{SECRET}"',
    "number as text": '"5"',
    "empty text": '""',
    "1 MB of text": json.dumps(SECRET * 170_000),
    "null byte": f'"{SECRET}\\u0000"',
    "raw null byte": f'"{SECRET}\x00"',
    "lone surrogate": f'"{SECRET}\\ud800"',
    "half an escape": f'"{SECRET}\\ud8"',
    "empty list": "[]",
    "list of null": "[null]",
    "list of numbers": "[1]",
    "list of empty text": '[""]',
    "list of null bytes": f'["{SECRET}\\u0000"]',
    "too long a list": json.dumps([SECRET] * 1_001),
    "empty object": "{}",
    "object without a name": '{"": 1}',
    "object of null": '{"a": null}',
    "object of a list": '{"a": []}',
    "object of NaN": '{"a": NaN}',
    "object of 1e400": '{"a": 1e400}',
    "object of a lone surrogate": f'{{"a": "{SECRET}\\ud800"}}',
    "object of 5000 digits": f'{{"a": {"9" * 5000}}}',
    "object of a negative": '{"a": -1}',
    "object of 10^19": f'{{"a": {HUGE}}}',
    "large object": json.dumps({"a": SECRET * 12_000}),
    "deep list": nested(100, "[", "", "]"),
    "deep object": nested(100, '{"a":', "1", "}"),
    "deeper list": nested(5_000, "[", "", "]"),
    "nothing": "",
}
"""What is sent in the place of a field's value, as it stands in the body."""

NAME, LIST, OBJECT = {"text", "number as text"}, {"empty list"}, {"empty object"}
ANY_OBJECT = OBJECT | {
    "object without a name", "object of null", "object of a list", "object of a negative", "object of 10^19",
}  # fmt: skip
UNUSED = {"empty text", "empty list", "empty object"}
VALID: Mapping[str, set[str]] = {
    "user_id": NAME, "user_alias": NAME, "team_id": NAME, "key_alias": NAME,
    "user_email": set(), "password": set(), "user_role": set(), "budget_duration": set(), "duration": set(),
    "key": NAME, "new_key": set(),
    "teams": LIST, "models": LIST, "allowed_cache_controls": LIST, "guardrails": LIST,
    "max_budget": {"whole", "fraction"}, "soft_budget": {"whole", "fraction"}, "spend": {"whole", "fraction"},
    "tpm_limit": {"whole"}, "rpm_limit": {"whole"}, "max_parallel_requests": {"whole"},
    "model_rpm_limit": OBJECT, "model_tpm_limit": OBJECT, "model_max_budget": OBJECT, "aliases": OBJECT,
    "permissions": ANY_OBJECT, "metadata": ANY_OBJECT, "config": ANY_OBJECT,
    "blocked": {"true"}, "auto_create_key": {"true"}, "send_invite_email": set(),
}  # fmt: skip
"""Which of the values are good ones for a field after all; `send_invite_email` is 400 here, without a mail server."""

Body = Callable[[str], str]
"""Makes a body of a field and its value."""
ROUTES: Mapping[str, tuple[str, frozenset[str], Body]] = {
    "user_new": ("/user/new", frozenset(NewUser.model_fields) | UNUSED_FIELDS, lambda sent: f"{{{sent}}}"),
    "user_update": (
        "/user/update", frozenset(UserUpdate.model_fields) | UNUSED_FIELDS, lambda sent: f'{{"user_id": "ana", {sent}}}'
    ),
    "bulk_update": (
        "/user/bulk_update", frozenset(UserUpdate.model_fields) | UNUSED_FIELDS,
        lambda sent: f'{{"users": [{{"user_id": "ana"}}, {{"user_id": "ana", {sent}}}]}}',
    ),
    "key_new": (
        "/key/generate", frozenset(NewKey.model_fields) | UNUSED_OF_KEYS, lambda sent: f'{{"user_id": "ana", {sent}}}'
    ),
    "key_update": (
        "/key/update", frozenset(KeyUpdate.model_fields) | UNUSED_OF_KEYS, lambda sent: f'{{"key": "{KEY}", {sent}}}'
    ),
    "key_anew": (
        f"/key/{KEY}/regenerate", frozenset(KeyRegeneration.model_fields) | UNUSED_OF_KEYS,
        lambda sent: f"{{{sent}}}",
    ),
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(url_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Give a served gate that knows a user with a key."""
    empty(url_of("valkey"))
    folder: Path = tmp_path_factory.mktemp("gate")
    async with staged(url_of("valkey"), folder) as stage:
        yield stage


@pytest_asyncio.fixture(loop_scope="module")
async def ana(stage: Stage) -> AsyncIterator[None]:
    """Give a user with something in every field, and a key; the store holds nothing else."""
    empty(stage.redis_url)
    full = {
        "user_id": "ana", "user_email": "ana@example.org", "user_alias": "Ana", "teams": ["red"], "max_budget": 1,
        "budget_duration": "30d", "models": ["gpt-*"], "tpm_limit": 1, "rpm_limit": 1, "model_rpm_limit": {"o1": 1},
        "model_max_budget": {"o1": 1}, "aliases": {"fast": "o1"}, "metadata": {"desk": 4}, "auto_create_key": False,
    }  # fmt: skip
    for path, body in (("/user/new", full), ("/key/generate", {"user_id": "ana", "key": KEY, "rpm_limit": 1})):
        assert (await stage.http.post(path, json=body, headers=ADMIN)).status_code == 200
    yield


async def post(stage: Stage, path: str, content: str | bytes, **headers: str) -> httpx.Response:
    sent = {**ADMIN, "content-type": "application/json", **headers}
    body = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return await stage.http.post(path, content=body, headers=sent)


def check_refused(answer: httpx.Response, about: str) -> None:
    """Fails where an answer is no 4xx, has another shape than documented, or tells a value that was sent."""
    assert 400 <= answer.status_code < 500, (about, answer.status_code, answer.text[:300])
    shown = answer.json()
    assert SECRET not in answer.text, (about, answer.text[:300])
    assert HUGE not in answer.text, (about, answer.text[:300])
    assert len(answer.content) < 100_000, about
    if answer.status_code == 422 and "detail" in shown:
        assert shown.keys() == {"detail"}
        for line in shown["detail"]:
            assert line.keys() == {"type", "loc", "msg"}, about
            assert line["loc"][0] == "body", about
    else:
        assert shown.keys() == {"error"}, about
        assert shown["error"].keys() == {"message", "type", "param", "code"}, about
        assert shown["error"]["code"] == str(answer.status_code), about


FIELDS = [
    pytest.param(route, field, id=f"{route}-{field}")
    for route, (_, fields, _) in ROUTES.items()
    for field in sorted(fields)
]


def valid_for(route: str, field: str) -> set[str]:
    """The good values of a field on a route."""
    body = NewKey if route.startswith("key") else NewUser
    if field in body.unused_fields:
        return UNUSED
    return VALID[field] | ({"empty text"} if field in body.null_texts else set())


@pytest.mark.usefixtures("ana")
@pytest.mark.parametrize(("route", "field"), FIELDS)
async def test_a_bad_value_is_refused_and_changes_nothing(stage: Stage, route: str, field: str) -> None:
    path, _, body = ROUTES[route]
    before = stage.dump()
    for name in VALUES.keys() - valid_for(route, field):
        if (route, field) == ("bulk_update", "send_invite_email") and name == "true":
            continue  # well formed: a result of its own says that it did not succeed
        answer = await post(stage, path, body(f'"{field}": {VALUES[name]}'))
        check_refused(answer, name)
    assert stage.dump() == before


GOOD = [
    pytest.param(route, field, id=f"{route}-{field}")
    for route in ("user_update", "key_update")
    for field in sorted(ROUTES[route][1] - {"user_id", "key"})
    if valid_for(route, field)
]


@pytest.mark.usefixtures("ana")
@pytest.mark.parametrize(("route", "field"), GOOD)
async def test_what_the_table_calls_valid_is_taken(stage: Stage, route: str, field: str) -> None:
    path, _, body = ROUTES[route]
    for name in sorted(valid_for(route, field)):
        answer = await post(stage, path, body(f'"{field}": {VALUES[name]}'))
        assert answer.status_code == 200, (name, answer.text)


LISTED = NAME | {"nothing"}
INSIDE: Mapping[str, tuple[str, set[str]]] = {
    "teams": ("[{}]", LISTED),
    "models": ("[{}]", LISTED),
    "allowed_cache_controls": ("[{}]", LISTED),
    "guardrails": ("[{}]", LISTED),
    "model_rpm_limit": ('{{"o1": {}}}', {"whole"}),
    "model_tpm_limit": ('{{"o1": {}}}', {"whole"}),
    "model_max_budget": ('{{"o1": {}}}', {"whole", "fraction"}),
    "aliases": ('{{"fast": {}}}', NAME),
}
"""How a value stands inside of a field, and which of them are good there."""


@pytest.mark.usefixtures("ana")
@pytest.mark.parametrize("field", INSIDE)
async def test_a_bad_value_inside_of_a_field_is_refused_and_changes_nothing(stage: Stage, field: str) -> None:
    shape, good = INSIDE[field]
    before = stage.dump()
    for name in VALUES.keys() - good:
        answer = await post(stage, "/user/update", f'{{"user_id": "ana", "{field}": {shape.format(VALUES[name])}}}')
        check_refused(answer, name)
    assert stage.dump() == before


PATHS = [
    "/user/new", "/user/update", "/user/bulk_update", "/user/delete", "/user/block", "/user/unblock",
    "/team/member_add", "/team/member_delete", "/key/generate", "/key/update", "/key/block", "/key/unblock",
    "/key/delete", f"/key/{KEY}/regenerate",
]  # fmt: skip
BODIES: Mapping[str, tuple[str | bytes, dict[str, str], int]] = {
    "a list": ("[]", {}, 422),
    "a text": (f'"{SECRET}"', {}, 422),
    "null": ("null", {}, 422),
    "a number": ("1", {}, 422),
    "no JSON": (f"user_id={SECRET}", {}, 422),
    "half of it": (f'{{"user_id": "{SECRET}', {}, 422),
    "two of it": ("{} {}", {}, 422),
    "not UTF-8": (b'{"user_id": "s3cr3t\xff"}', {}, 422),
    "UTF-16": (f'{{"user_id": "{SECRET}"}}'.encode("utf-16"), {}, 422),
    "a byte order mark": (b"\xef\xbb\xbf{}", {}, 422),
    "too deep": (nested(100_000, "[", "", "]"), {}, 422),
    "deep in an unknown field": ('{"x": ' + nested(100_000, '{"a":', "1", "}") + "}", {}, 422),
    "unknown fields": (json.dumps({f"{number}{'x' * 1_000}": SECRET for number in range(500)}), {}, 422),
    "an unknown field": (f'{{"user_id": "ana", "user_ids": ["ana"], "rmp_limit": "{SECRET}"}}', {}, 422),
    "too large": (" " * (2 * 1024 * 1024 + 1), {}, 413),
    "plain text": ("{}", {"content-type": "text/plain"}, 415),
    "a form": (f"user_id={SECRET}", {"content-type": "application/x-www-form-urlencoded"}, 422),
    "a form of parts": (f"user_id={SECRET}", {"content-type": "multipart/form-data; boundary=x"}, 415),
    "another charset": ("{}", {"content-type": "application/json; charset=utf-16"}, 415),
    "no content type": ("{}", {"content-type": ""}, 415),
    "compressed": (b"\x1f\x8b", {"content-encoding": "gzip"}, 415),
}
"""Whole bodies, their headers, and the status that each is answered with."""


@pytest.mark.usefixtures("ana")
@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_is_none_is_refused_and_changes_nothing(stage: Stage, path: str) -> None:
    before = stage.dump()
    for name, (content, headers, status) in BODIES.items():
        answer = await post(stage, path, content, **headers)
        check_refused(answer, name)
        assert answer.status_code == status, (name, answer.text[:300])
    if "regenerate" not in path:  # where a body is optional
        check_refused(await stage.http.post(path, headers=ADMIN), "no body")
    assert stage.dump() == before


@pytest.mark.usefixtures("ana")
async def test_read_only_fields_are_refused_with_any_value(stage: Stage) -> None:
    before = stage.dump()
    for field in READ_ONLY:
        for name, value in {**VALUES, "null": "null"}.items():
            check_refused(await post(stage, "/user/update", f'{{"user_id": "ana", "{field}": {value}}}'), name)
    assert stage.dump() == before


@pytest.mark.usefixtures("ana")
async def test_one_bad_field_among_good_ones_changes_none_of_them(stage: Stage) -> None:
    before = stage.dump()
    body: dict[str, Any] = {"user_id": "ana", "user_alias": "Bea", "teams": [], "spend": 0, "rpm_limit": -1}
    check_refused(await stage.http.post("/user/update", json=body, headers=ADMIN), "update")
    body = {"user_id": "bob", "user_email": "bob@example.org", "key_alias": "phone", "model_max_budget": {"m": "1"}}
    check_refused(await stage.http.post("/user/new", json=body, headers=ADMIN), "new")
    body = {"key": KEY, "key_alias": "phone", "models": ["o1"], "blocked": True, "tpm_limit": 0.5}
    check_refused(await stage.http.post("/key/update", json=body, headers=ADMIN), "key")
    assert stage.dump() == before
