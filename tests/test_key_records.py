from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmweir.durations import parse
from llmweir.key_records import (
    UNUSED_FIELDS,
    KeyFields,
    KeyRecord,
    KeyRegeneration,
    KeyUpdate,
    NewKey,
    changed_key,
    key_from_stored,
    key_json,
    stored_key,
)
from llmweir.record_fields import problems

NOW_MS = 1_800_000_000_000
BARE = KeyRecord(token="ab" * 32, user_id="ana", key_name="sk-...wxyz", created_at_ms=NOW_MS)
BODIES: list[tuple[type[KeyFields], dict[str, object]]] = [
    (NewKey, {}),
    (KeyUpdate, {"key": "sk-whichever"}),
    (KeyRegeneration, {}),
]
FULL: dict[str, Any] = {
    "key_alias": "laptop",
    "team_id": "red",
    "models": ["gpt-*", "claude"],
    "aliases": {"fast": "gpt-4o-mini"},
    "metadata": {"n": 10**30, "deep": [{"a": None}], "s": "\N{SNOWMAN}"},
    "rpm_limit": 1,
    "tpm_limit": 2,
    "max_parallel_requests": 0,
    "max_budget": 0.1,
    "budget_duration": "1mo",
    "spend": 0.05,
    "blocked": True,
    "duration": "30d",
}


def new(**fields: object) -> NewKey:
    return NewKey.model_validate_json(json.dumps(fields))


def update(**fields: object) -> KeyUpdate:
    return KeyUpdate.model_validate_json(json.dumps({"key": "sk-whichever", **fields}))


def found(body: type[KeyFields], sent: str) -> list[dict[str, object]]:
    with pytest.raises(ValidationError) as caught:
        body.model_validate_json(sent)
    return problems(caught.value)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *((name, bad) for name in ("rpm_limit", "tpm_limit", "max_parallel_requests") for bad in ("-1", "1.5", "true")),
        *((name, bad) for name in ("max_budget", "spend") for bad in ("-1", "NaN", "1e-10", "9000001", '"1"')),
        *((name, bad) for name in ("duration", "budget_duration") for bad in ('"1y"', '"0s"', "1", '"-1"')),
        *((name, bad) for name in ("user_id", "key_alias", "team_id") for bad in ("1", '"a\\u0000"')),
        *(("models", bad) for bad in ('"a"', '["*a"]', "[1]", '[""]')),
        *(("aliases", bad) for bad in ('{"a*": "b"}', '{"a": 1}', "[]")),
        ("metadata", "[]"),
        ("metadata", json.dumps({"a": "x" * 65_536})),
        ("blocked", "1"),
        ("unheard_of", "null"),
        ("created_at", "null"),
        ("token", '"a"'),
    ],
)
@pytest.mark.parametrize(("body", "named"), BODIES, ids=["new", "update", "regeneration"])
def test_a_bad_value_is_a_problem_of_its_field(
    body: type[KeyFields], named: dict[str, object], field: str, bad: str
) -> None:
    rest = "".join(f', "{name}": {json.dumps(value)}' for name, value in named.items())
    for problem in found(body, f'{{"{field}": {bad}{rest}}}'):
        assert isinstance(problem["loc"], list)
        assert problem["loc"][:2] == ["body", field]


@pytest.mark.parametrize("name", sorted(UNUSED_FIELDS))
def test_a_field_that_means_nothing_here_is_taken_only_when_empty(name: str) -> None:
    empties: tuple[object, ...] = (None, False, "", [], {})
    for empty in empties:
        assert new(**{name: empty}).model_fields_set == set()
        assert update(**{name: empty}).model_fields_set == {"key"}
    for value in (True, 0, 1, "a", [None], {"a": 1}):
        assert found(NewKey, json.dumps({name: value})) == [
            {
                "type": "unused_field",
                "loc": ["body", name],
                "msg": "This field means nothing here: leave it out, or send null.",
            }
        ]


def test_no_field_both_works_and_means_nothing() -> None:
    for body, _ in BODIES:
        assert not UNUSED_FIELDS & body.model_fields.keys()


@pytest.mark.parametrize(
    ("key", "is_good"),
    [
        pytest.param("sk-" + "a" * 13, True, id="16 characters"),
        pytest.param("sk-" + "a" * 253, True, id="256 characters"),
        pytest.param("sk-!/~%#\"'{}\\abcdef", True, id="all that is printable"),
        pytest.param("sk-" + "a" * 12, False, id="too short"),
        pytest.param("sk-" + "a" * 254, False, id="too long"),
        pytest.param("pk-" + "a" * 20, False, id="another start"),
        pytest.param("sk-aaaaaaa aaaaaaa", False, id="a blank"),
        pytest.param("sk-aaaaaaaaaaaaaaa\n", False, id="a line's end"),
        pytest.param("sk-aaaaaaaaaaaaaaä", False, id="not ASCII"),
    ],
)
def test_a_key_of_ones_own_choice_is_long_and_printable(key: str, is_good: bool) -> None:
    for body, name in ((NewKey, "key"), (KeyRegeneration, "new_key")):
        sent = json.dumps({name: key})
        if is_good:
            chosen = getattr(body.model_validate_json(sent), name)
            assert chosen.get_secret_value() == key
        else:
            (problem,) = found(body, sent)
            assert problem["loc"] == ["body", name]


def test_a_key_is_in_no_repr_and_in_no_error() -> None:
    secret = "sk-s3cr3ts3cr3ts3cr3t"
    assert "s3cr3t" not in repr(new(key=secret)) + repr(update(key=secret)) + repr(KeyRegeneration(new_key=None))
    with pytest.raises(ValidationError) as caught:
        new(key="s3cr3t", rpm_limit="s3cr3t", tags=["s3cr3t"])
    assert "s3cr3t" not in str(caught.value) + json.dumps(problems(caught.value))


def test_null_is_absent_for_a_new_key_and_clears_in_an_update() -> None:
    everything: dict[str, object] = dict.fromkeys(KeyFields.model_fields)
    assert new(**everything, key=None).model_fields_set == set()
    cleared = update(**everything)
    assert cleared.model_fields_set == KeyFields.model_fields.keys() | {"key"}
    assert (cleared.spend_nanos, cleared.max_budget_nanos, cleared.life) == (0, None, None)


def test_an_update_names_its_key() -> None:
    for sent in ('{"rpm_limit": 1}', '{"key": null, "rpm_limit": 1}', '{"key_alias": null}'):
        assert found(KeyUpdate, sent)[0]["msg"] == "An update names its key by key or key_alias."
    assert KeyUpdate.model_validate_json('{"key_alias": "a"}').key is None
    assert found(KeyUpdate, '{"key": ""}')[0]["loc"] == ["body", "key"]


def test_typed_attributes_are_nanos_and_durations() -> None:
    body = new(**FULL)
    assert (body.max_budget_nanos, body.spend_nanos) == (10**8, 5 * 10**7)
    assert body.life == parse("30d")
    assert new().spend_nanos is None


def test_a_key_reads_back_as_it_was_sent() -> None:
    record = changed_key(BARE, new(**FULL), NOW_MS)
    shown = key_json(record)
    assert {name: shown[name] for name in FULL if name != "duration"} == {
        name: value for name, value in FULL.items() if name != "duration"
    }
    assert (shown["token"], shown["key_name"], shown["user_id"]) == (BARE.token, BARE.key_name, "ana")
    assert (shown["created_at"], shown["expires"]) == ("2027-01-15T08:00:00.000Z", "2027-02-14T08:00:00.000Z")


def test_a_bare_key_reads_empty_and_null() -> None:
    shown = key_json(BARE)
    assert (shown["models"], shown["aliases"], shown["metadata"], shown["spend"]) == ([], {}, {}, 0)
    assert (shown["blocked"], shown["expires"], shown["budget_reset_at"], shown["rpm_limit"]) == (
        False,
        None,
        None,
        None,
    )
    assert json.loads(json.dumps(shown)) == shown


def test_an_update_changes_what_was_sent_and_nothing_else() -> None:
    full = changed_key(BARE, new(**FULL), NOW_MS)
    later_ms = NOW_MS + 5
    assert changed_key(full, update(), later_ms) == full
    renamed = changed_key(full, update(key_alias="phone"), later_ms)
    assert (renamed.key_alias, renamed.expires_at_ms, renamed.rpm_limit) == ("phone", full.expires_at_ms, 1)
    prolonged = changed_key(full, update(duration="1s"), later_ms)
    assert prolonged.expires_at_ms == later_ms + 1_000
    everything: dict[str, object] = dict.fromkeys(FULL)
    assert changed_key(full, update(**everything), later_ms) == BARE
    emptied = changed_key(full, update(models=[], aliases={}, metadata={}), later_ms)
    assert (emptied.models, emptied.aliases, emptied.metadata) == ((), {}, {})


def test_a_stored_row_holds_nothing_that_is_null_or_empty() -> None:
    assert stored_key(BARE) == '{"key_name":"sk-...wxyz","created_at_ms":1800000000000}'
    stored = json.loads(stored_key(changed_key(BARE, new(**FULL), NOW_MS)))
    assert stored.keys() == FULL.keys() - {"spend", "blocked", "duration"} | {"key_name", "created_at_ms"}


_RECORDS = st.builds(
    KeyRecord,
    token=st.just(BARE.token),
    user_id=st.text(),
    key_name=st.text(),
    key_alias=st.none() | st.text(min_size=1),
    models=st.lists(st.text()).map(tuple),
    aliases=st.dictionaries(st.text(), st.text()),
    metadata=st.dictionaries(st.text(), st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
    rpm_limit=st.none() | st.integers(0, 2**53 - 1),
    max_budget_nanos=st.none() | st.integers(0, 8 * 10**15),
    spend_nanos=st.integers(0),
    budget_reset_at_ms=st.none() | st.integers(0),
    blocked=st.booleans(),
    created_at_ms=st.integers(0),
    expires_at_ms=st.integers(0),
)


@given(_RECORDS)
def test_a_stored_row_reads_back_whole_and_is_spelled_one_way(record: KeyRecord) -> None:
    text = stored_key(record)
    back = key_from_stored(
        text,
        token=record.token,
        user_id=record.user_id,
        spend_nanos=record.spend_nanos,
        budget_reset_at_ms=record.budget_reset_at_ms,
        blocked=record.blocked,
        expires_at_ms=record.expires_at_ms,
    )
    assert back == record
    assert stored_key(back) == text


@pytest.mark.parametrize("name", ["user_id", "key_alias", "duration", "team_id", "budget_duration"])
def test_an_empty_text_stands_for_null(name: str) -> None:
    body = KeyUpdate.model_validate_json(json.dumps({"key": "sk-mine", name: ""}))
    assert name in body.model_fields_set
    assert getattr(body, name) is None
    assert name not in NewKey.model_validate_json(json.dumps({name: ""})).model_fields_set


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key_name": 1}', '{"key_name": "a", "rpm_limit": "1"}'])
def test_a_row_that_this_did_not_write_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        key_from_stored(text, token="", user_id="")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**40),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=8,
)
_NAMES = sorted({*NewKey.model_fields, *KeyUpdate.model_fields, *KeyRegeneration.model_fields, "tags", "key_type"})


@given(st.binary() | (_JSON | st.dictionaries(st.sampled_from(_NAMES), _JSON)).map(lambda it: json.dumps(it).encode()))
def test_no_bytes_raise_anything_but_a_validation_error(sent: bytes) -> None:
    for body, _ in BODIES:
        try:
            read = body.model_validate_json(sent)
        except ValidationError as error:
            json.dumps(problems(error))
        else:
            stored_key(changed_key(BARE, read, NOW_MS))


def test_the_bodies_have_a_json_schema_that_names_what_means_nothing() -> None:
    for body, _ in BODIES:
        schema = json.loads(json.dumps(body.model_json_schema()))
        assert schema["properties"].keys() == body.model_fields.keys() | UNUSED_FIELDS
        assert schema["properties"]["tags"] == {"enum": [None, False, "", [], {}]}
