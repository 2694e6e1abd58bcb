from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmweir.durations import parse
from llmweir.records import (
    UNUSED_FIELDS,
    ModelBudget,
    NewUser,
    UserRecord,
    UserUpdate,
    as_json,
    iso_time,
    parse_new,
    parse_update,
    problems,
    record_from_stored,
    stored_fields,
)

_WHOLE = ("tpm_limit", "rpm_limit", "max_parallel_requests")
_USD = ("max_budget", "soft_budget", "spend")
_TEXT = ("user_id", "user_email", "password", "user_alias", "team_id", "key_alias")
_LISTS = ("teams", "models", "allowed_cache_controls", "guardrails")
_LIMITS = ("model_rpm_limit", "model_tpm_limit")
_OBJECTS = ("permissions", "metadata", "config")
_BAD_NUMBERS = ("NaN", "Infinity", "-1", "1e400", "1" + "0" * 19, "true", '"5"', "[]", "{}", "9" * 5_000)
_BAD_TEXTS = (
    '""',
    "1",
    "true",
    "[]",
    json.dumps("x" * 1_000_000),
    '"a\\u0000@bcdefgh"',
    '"\\ud800"',
    '"\\u0085@bcdefgh"',
)
_BAD_LISTS = (
    "1",
    '"a"',
    "{}",
    "[1]",
    "[null]",
    '[""]',
    '["a\\u0000"]',
    json.dumps(["a"] * 1_001),
    '["' + "x" * 257 + '"]',
)
_DEEP = '{"a":' * 32 + "{}" + "}" * 32
_BAD_OBJECTS = ("1", "[]", '"a"', '{"a": NaN}', '{"a": 1e400}', _DEEP, json.dumps({"a": "x" * 65_536}))
_BAD_ROWS = [
    *((field, bad) for field in _WHOLE for bad in (*_BAD_NUMBERS, "1.5", str(2**53))),
    *((field, bad) for field in _USD for bad in (*_BAD_NUMBERS, "1e-10", "9000001")),
    *((field, bad) for field in _TEXT for bad in _BAD_TEXTS),
    *((field, bad) for field in _LISTS for bad in _BAD_LISTS),
    *((field, f'{{"m": {bad}}}') for field in _LIMITS for bad in (*_BAD_NUMBERS, "1.5", "null")),
    *((field, bad) for field in _LIMITS for bad in ("1", "[]", '{"": 1}', '{"a*b": 1}', '{"a\\u0000": 1}')),
    *((field, bad) for field in _OBJECTS for bad in (*_BAD_OBJECTS, json.dumps({str(n): 1 for n in range(1_001)}))),
    *((field, bad) for field in ("budget_duration", "duration") for bad in ("1", '""', '"1y"', '"0s"', '"101y"')),
    *(("user_email", bad) for bad in ('"a"', '"@b"', '"a@"', '"a@b@c"', '"a b@c"')),
    *(("password", bad) for bad in ('"1234567"', json.dumps("x" * 1_025))),
    *(("aliases", bad) for bad in ('{"a": 1}', '{"a": ""}', '{"a*": "b"}', '{"a": "b*"}', "[]")),
    *(("models", bad) for bad in ('["*a"]', '["a**"]')),
    *((field, bad) for field in ("blocked", "send_invite_email", "auto_create_key") for bad in ("1", '"true"', "[]")),
    *(("user_role", bad) for bad in ('"root"', "1", '""')),
    *(("model_max_budget", f'{{"m": {bad}}}') for bad in ("null", '"1"', "true", "-1", "NaN", "[]", "{}")),
    ("model_max_budget", '{"m": {"max_budget": 1, "budget_limit": 1}}'),
    ("model_max_budget", '{"m": {"max_budget": 1, "budget_duration": "1d", "time_period": "1d"}}'),
    ("model_max_budget", '{"m": {"max_budget": 1, "tpm_limit": 1}}'),
    ("model_max_budget", '{"m": {"time_period": "1d"}}'),
    ("unheard_of", "null"),
]


def _problems(body: str | bytes) -> list[dict[str, object]]:
    with pytest.raises(ValidationError) as caught:
        parse_new(body if isinstance(body, bytes) else body.encode())
    return problems(caught.value)


@pytest.mark.parametrize(("field", "bad"), _BAD_ROWS, ids=[f"{field}={bad[:24]!r}" for field, bad in _BAD_ROWS])
def test_a_bad_value_is_a_problem_of_its_field(field: str, bad: str) -> None:
    for found in _problems(f'{{"{field}": {bad}}}'):
        assert set(found) == {"type", "loc", "msg"}
        loc = found["loc"]
        assert isinstance(loc, list)
        assert loc[:2] == (["body"] if found["type"] == "json_invalid" else ["body", field])


@pytest.mark.parametrize("name", ["reserved", "budget_reset_at", "created_at", "updated_at", "model_spend"])
def test_a_read_only_field_says_so(name: str) -> None:
    assert _problems(json.dumps({name: None})) == [
        {"type": "read_only", "loc": ["body", name], "msg": "This field is read only."}
    ]


@pytest.mark.parametrize("name", sorted(UNUSED_FIELDS))
def test_a_field_that_means_nothing_here_is_taken_only_when_empty(name: str) -> None:
    empties: tuple[object, ...] = (None, False, "", [], {})
    for empty in empties:
        assert parse_new(json.dumps({name: empty}).encode()).model_fields_set == set()
        update = parse_update(json.dumps({"user_id": "a", name: empty}).encode())
        assert update.model_fields_set == {"user_id"}
    for value in (True, 0, 1, "a", [None], {"a": 1}):
        message = "This field means nothing here: leave it out, or send null."
        assert _problems(json.dumps({name: value})) == [{"type": "unused_field", "loc": ["body", name], "msg": message}]


def test_no_field_both_works_and_means_nothing() -> None:
    assert not UNUSED_FIELDS & NewUser.model_fields.keys()


def test_a_problem_never_tells_the_value() -> None:
    body = (
        '{"password": "s3cr3t", "user_email": "s3cr3t", "max_budget": "s3cr3t", "x": "s3cr3t", "models": ["*s3cr3t"]}'
    )
    assert "s3cr3t" not in json.dumps(_problems(body))
    with pytest.raises(ValidationError) as caught:
        parse_new(body.encode())
    assert "s3cr3t" not in str(caught.value)


def test_problems_are_bounded_in_number_and_length() -> None:
    found = _problems(json.dumps({f"{n}" + "x" * 1_000: 1 for n in range(500)}))
    assert len(found) == 100
    assert all(len(json.dumps(each)) < 400 for each in found)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**19),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=8,
)


_FIELDS = st.dictionaries(st.sampled_from(sorted(NewUser.model_fields)), _JSON)


@given(st.binary() | (_JSON | _FIELDS).map(lambda body: json.dumps(body).encode()))
def test_no_bytes_raise_anything_but_a_validation_error(body: bytes) -> None:
    for read in (parse_new, parse_update):
        try:
            stored_fields(read(body))
        except ValidationError as error:
            json.dumps(problems(error))


def test_duplicate_names_take_the_last_value() -> None:
    assert parse_new(b'{"rpm_limit": 1, "rpm_limit": 2}').rpm_limit == 2


def test_null_is_absent_in_a_new_user_and_clears_in_an_update() -> None:
    assert parse_new(b'{"rpm_limit": null}').model_fields_set == set()
    update = parse_update(b'{"user_id": "a", "rpm_limit": null, "teams": [], "metadata": {}, "spend": null}')
    assert stored_fields(update) == {"rpm_limit": None, "teams": None, "metadata": None}
    assert update.spend_nanos == 0


def test_an_update_names_its_user() -> None:
    with pytest.raises(ValidationError, match="user_id or user_email"):
        parse_update(b'{"rpm_limit": 1}')
    assert stored_fields(parse_update(b'{"user_email": "A@b"}')) == {}
    assert stored_fields(parse_update(b'{"user_id": "a", "user_email": "A@b"}')) == {"user_email": '"A@b"'}


def test_a_team_id_joins_the_teams() -> None:
    assert stored_fields(parse_new(b'{"team_id": "t", "teams": ["s"]}'))["teams"] == '["s","t"]'
    update = parse_update(b'{"user_id": "a", "team_id": "t"}')
    assert update.joins_team == "t"
    assert "teams" not in stored_fields(update)


def test_whole_numbers_may_be_written_as_whole_floats() -> None:
    assert parse_new(b'{"rpm_limit": 5.0, "tpm_limit": 9007199254740991}').model_dump(exclude_unset=True) == {
        "rpm_limit": 5,
        "tpm_limit": 2**53 - 1,
    }


def test_typed_attributes_are_nanos_and_durations() -> None:
    new = parse_new(
        b'{"max_budget": 0.1, "soft_budget": 1, "spend": 2, "budget_duration": "1mo", "duration": "30d",'
        b'"model_max_budget": {"a": 1, "b*": {"budget_limit": 2.5, "time_period": "1d"}}}'
    )
    assert (new.max_budget_nanos, new.soft_budget_nanos, new.spend_nanos) == (10**8, 10**9, 2 * 10**9)
    assert (new.budget_period, new.key_life, new.mints_key) == (parse("1mo"), parse("30d"), True)
    assert new.model_budgets == {"a": ModelBudget(10**9), "b*": ModelBudget(2_500_000_000, parse("1d"))}
    empty = parse_new(b"{}")
    assert (empty.max_budget_nanos, empty.spend_nanos, empty.budget_period, empty.key_life) == (None,) * 4


_FULL: dict[str, object] = {
    "user_email": "A@b.c", "user_alias": "Al", "teams": ["t"], "user_role": "team", "max_budget": 0.1,
    "budget_duration": "1mo", "models": ["gpt-*"], "tpm_limit": 1, "rpm_limit": 2, "max_parallel_requests": 3,
    "model_rpm_limit": {"a": 1}, "model_tpm_limit": {"a*": 2}, "soft_budget": 5, "aliases": {"x": "y"},
    "model_max_budget": {"a": 1.5, "b": {"budget_limit": 2, "time_period": None}}, "blocked": True,
    "allowed_cache_controls": ["ttl"], "guardrails": ["g"], "permissions": {"p": 1}, "metadata": {"m": [10**19]},
    "config": {"c": None}, "team_id": "t",
}  # fmt: skip


def test_a_record_reads_back_as_it_was_sent() -> None:
    fields = stored_fields(parse_new(json.dumps({**_FULL, "password": "12345678"}).encode()))
    assert set(fields) == set(_FULL)
    record = record_from_stored(
        "u",
        {name: text for name, text in fields.items() if text is not None},
        created_at_ms=0,
        updated_at_ms=1_001,
        spend_nanos=1,
        reserved_nanos=10**9,
        model_spend_nanos={"a": 5 * 10**8},
        budget_reset_at_ms=86_400_000,
        has_password=True,
    )
    assert record.model_budgets["b"] == ModelBudget(2 * 10**9)
    assert as_json(record) == _FULL | {
        "user_id": "u", "spend": 1e-9, "reserved": 1, "model_spend": {"a": 0.5},
        "budget_reset_at": "1970-01-02T00:00:00.000Z", "created_at": "1970-01-01T00:00:00.000Z",
        "updated_at": "1970-01-01T00:00:01.001Z",
    }  # fmt: skip


def test_a_bare_record_reads_empty_and_null() -> None:
    shown = as_json(UserRecord(user_id="u", created_at_ms=0, updated_at_ms=0))
    assert shown["user_role"] == "internal_user"
    assert (shown["teams"], shown["metadata"], shown["max_budget"], shown["budget_reset_at"]) == ([], {}, None, None)
    assert "password" not in shown
    assert json.loads(json.dumps(shown)) == shown


def test_times_carry_milliseconds_and_z() -> None:
    assert iso_time(1_767_225_600_123) == "2026-01-01T00:00:00.123Z"


def test_the_password_is_hidden_in_the_repr() -> None:
    assert "12345678" not in repr(parse_new(b'{"password": "12345678"}'))


def test_the_bodies_have_a_json_schema_that_names_what_means_nothing() -> None:
    for body in (NewUser, UserUpdate):
        schema = json.loads(json.dumps(body.model_json_schema()))
        assert schema["properties"].keys() == body.model_fields.keys() | UNUSED_FIELDS
        assert schema["properties"]["tags"] == {"enum": [None, False, "", [], {}]}
