"""What a request's facts are, and which bodies are refused because two readers could read two requests in them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.formats import Format, RequestFacts
from llmweir.traffic.formats.anthropic import AnthropicFormat
from llmweir.traffic.formats.gemini import GeminiFormat
from llmweir.traffic.formats.json_body import read_members
from llmweir.traffic.formats.openai import OpenAIFormat

CHAT = OpenAIFormat("chat")
COMPLETIONS = OpenAIFormat("completions")
RESPONSES = OpenAIFormat("responses")
MESSAGES = AnthropicFormat()
GEMINI = GeminiFormat(stream=True)


def facts(body: bytes, form: Format = CHAT, path_model: str | None = None) -> RequestFacts:
    return form.facts(body, b"application/json", path_model)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"", "invalid_json", id="empty"),
        pytest.param(b"null", "invalid_json", id="null"),
        pytest.param(b'["model"]', "invalid_json", id="array"),
        pytest.param(b'{"model":"a"}{"model":"b"}', "invalid_json", id="two objects"),
        pytest.param(b'{"model":"a"}\0', "invalid_json", id="NUL at the end"),
        pytest.param(b'\xef\xbb\xbf{"model":"a"}', "invalid_json", id="byte order mark"),
        pytest.param('{"model":"a"}'.encode("utf-16"), "invalid_json", id="UTF-16"),
        pytest.param(b'{"model":"a","x":NaN}', "invalid_json", id="NaN"),
        pytest.param(b'{"model":"a",}', "invalid_json", id="trailing comma"),
        pytest.param(b'{"\xff":1,"model":"a"}', "invalid_json", id="a key not UTF-8"),
        pytest.param(b'{"model":"a\xff"}', "invalid_json", id="a model not UTF-8"),
        pytest.param(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", id="deep arrays"),
        pytest.param(b'{"x":' * 100_000 + b"1" + b"}" * 100_000, "invalid_json", id="deep objects"),
        pytest.param(b'{"messages":[]}', "missing_model", id="no model"),
        pytest.param(b'{"model":null}', "missing_model", id="null model"),
        pytest.param(b'{"model":""}', "missing_model", id="empty model"),
        pytest.param(b'{"model":7}', "invalid_model", id="number"),
        pytest.param(b'{"model":["a"]}', "invalid_model", id="list"),
        pytest.param(b'{"model":" a"}', "invalid_model", id="padded"),
        pytest.param(b'{"model":"a\\n"}', "invalid_model", id="control character"),
        pytest.param(b'{"model":"' + b"x" * 257 + b'"}', "invalid_model", id="too long"),
        pytest.param(b'{"model":"a","model":"b"}', "duplicate_model", id="two models"),
        pytest.param(b'{"model":"a","model":"a"}', "duplicate_model", id="the same model twice"),
        pytest.param(b'{"model":"a","mod\\u0065l":"b"}', "duplicate_model", id="escaped spelling last"),
        pytest.param(b'{"mod\\u0065l":"b","x":1,"model":"a"}', "duplicate_model", id="escaped spelling first"),
        pytest.param(b'{"model":"ab","x":[1],"model":"a"}', "duplicate_model", id="first value longer"),
        pytest.param(b'{ "model" : 12 , "model" : 1 }', "duplicate_model", id="a number and its beginning"),
        pytest.param(b'{"model":"a","x":1,"x":1}', "duplicate_key", id="another key twice"),
        pytest.param(b'{"model":"a","stream":false,"stream":true}', "duplicate_key", id="stream twice"),
        pytest.param(b'{"model":"a","Model":"b"}', "ambiguous_model", id="capital"),
        pytest.param(b'{"model":"a","MOD\\u0045L":"b"}', "ambiguous_model", id="capital, escaped"),
        pytest.param('{"model":"a","\u017ftream":true}'.encode(), "ambiguous_key", id="a long s folds to s"),
        pytest.param(b'{"model":"a","Max_Tokens":9}', "ambiguous_key", id="another key in capitals"),
        pytest.param(b'{"model":"a","stream":"true"}', "invalid_value", id="stream a string"),
        pytest.param(b'{"model":"a","stream":1}', "invalid_value", id="stream a number"),
        pytest.param(b'{"model":"a","stream_options":{"include_usage":1}}', "invalid_value", id="include_usage"),
        pytest.param(b'{"model":"a","stream_options":[]}', "invalid_json", id="stream_options a list"),
        pytest.param(b'{"model":"a","cache":true}', "invalid_json", id="cache not an object"),
        pytest.param(b'{"model":"a","background":true}', "background_not_metered", id="background"),
        *[
            pytest.param(b'{"model":"a","%s":%s}' % (key, value), "invalid_value", id=f"{key!r} {value!r}")
            for key in (b"n", b"best_of", b"max_tokens", b"max_completion_tokens")
            for value in (b"-1", b"true", b"1.0", b"1e400", b'"5"', b"[1]", b"1000000001", b"9" * 5000)
        ],
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_for_certain_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(UnreadableRequestError) as caught:
        facts(body)
    assert (caught.value.status, caught.value.code) == (400, code)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
pairs_of = st.lists(st.tuples(st.sampled_from(["model", "n", "a", "", "é", '"', "\\"]), json_values), max_size=6)


@given(
    pairs_of, st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]), st.booleans(), st.sampled_from(["", " "])
)
def test_exactly_the_bodies_with_a_key_twice_are_refused(
    pairs: list[tuple[str, object]], separators: tuple[str, str], ascii_only: bool, pad: str
) -> None:
    comma, colon = separators
    members = [
        json.dumps(k, ensure_ascii=ascii_only) + colon + json.dumps(v, ensure_ascii=ascii_only) for k, v in pairs
    ]
    body = (pad + "{" + pad + comma.join(members) + pad + "}" + pad).encode()
    try:
        found = set(read_members(body, frozenset()))
    except UnreadableRequestError:
        assert len({key for key, _ in pairs}) < len(pairs)
    else:
        assert found == {key for key, _ in pairs}
        assert len(found) == len(pairs)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (b"", None),
        (b"application/json", None),
        (b"application/json; charset=UTF-8", None),
        (b'application/json;charset="utf-8"', None),
        (b"application/json; charset=us-ascii", None),
        (b"text/plain", None),
        (b"application/json; charset=utf-16", 415),
        (b"application/json; charset*=utf-7''x", 415),
        (b"application/x-www-form-urlencoded", 415),
        (b"Multipart/Form-Data; boundary=x", 415),
        (b"application/json, multipart/form-data", 415),
    ],
)
def test_a_json_body_must_be_called_utf8_and_no_form(content_type: bytes, status: int | None) -> None:
    for form in (CHAT, MESSAGES, GEMINI):
        if status is None:
            assert form.facts(b'{"model":"a"}', content_type, None).model == "a"
        else:
            with pytest.raises(UnreadableRequestError) as caught:
                form.facts(b'{"model":"a"}', content_type, None)
            assert caught.value.status == status


def test_the_path_and_the_body_may_name_one_model_only() -> None:
    assert facts(b'{"messages":[]}', path_model="a").model == "a"
    assert facts(b'{"model":"a"}', path_model="a").model == "a"
    assert facts(b'{"model":"models/a"}', GEMINI, "a").model == "a"
    with pytest.raises(UnreadableRequestError, match="another") as caught:
        facts(b'{"model":"b"}', path_model="a")
    assert caught.value.code == "model_mismatch"


def test_moderations_need_no_model_and_images_do() -> None:
    assert facts(b'{"input":"x"}', OpenAIFormat("moderations")).model == ""
    with pytest.raises(UnreadableRequestError):
        facts(b'{"prompt":"x"}', OpenAIFormat("images"))


@pytest.mark.parametrize(
    ("form", "members", "answers"),
    [
        (CHAT, {}, 1),
        (CHAT, {"n": 3}, 3),
        (CHAT, {"n": 0}, 1),
        (CHAT, {"n": None}, 1),
        (COMPLETIONS, {"n": 2, "best_of": 5}, 5),
        (COMPLETIONS, {"prompt": "a"}, 1),
        (COMPLETIONS, {"prompt": []}, 1),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 3}, 6),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, 2),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 10**9}, 10**6),
        (GEMINI, {"generationConfig": {"candidateCount": 4}}, 4),
        (GEMINI, {"generation_config": {"candidate_count": 4}, "generationConfig": {"candidateCount": 2}}, 4),
        (GEMINI, {"generationConfig": None}, 1),
    ],
)
def test_what_multiplies_the_answer_is_counted(form: Format, members: dict[str, object], answers: int) -> None:
    assert facts(msgspec.json.encode({"model": "a", **members}), form).answers == answers


@pytest.mark.parametrize(
    ("form", "members", "bound"),
    [
        (CHAT, {}, None),
        (CHAT, {"max_tokens": None}, None),
        (CHAT, {"max_tokens": 7}, 7),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 9}, 9),
        (RESPONSES, {"max_output_tokens": 0}, 0),
        (MESSAGES, {"max_tokens": 5}, 5),
        (GEMINI, {"generationConfig": {"maxOutputTokens": 5}}, 5),
        (GEMINI, {"generationConfig": {"max_output_tokens": 8, "maxOutputTokens": 5}}, 8),
    ],
)
def test_the_larger_of_the_bounds_holds(form: Format, members: dict[str, object], bound: int | None) -> None:
    assert facts(msgspec.json.encode({"model": "a", **members}), form).max_output_tokens == bound


def test_a_key_twice_in_a_nested_object_that_costs_is_refused() -> None:
    with pytest.raises(UnreadableRequestError):
        facts(b'{"model":"a","generationConfig":{"maxOutputTokens":1,"maxOutputTokens":90}}', GEMINI)


def test_the_small_facts_of_a_body_are_read() -> None:
    body = b'{"model":"a","stream":true,"cache":{"no-cache":true,"ttl":3},"stream_options":{"include_usage":true}}'
    assert facts(body) == RequestFacts("a", True, 0, 0, None, 1, ("no-cache", "ttl"), True)
    assert facts(body, MESSAGES).cache_controls == ("no-cache", "ttl")
    assert facts(b'{"model":"a"}', GEMINI).stream
    assert not facts(b'{"model":"a","stream":null}').stream


@pytest.mark.parametrize("key", ["messages", "tools", "functions"])
def test_text_is_measured_as_it_lies_in_the_body(key: str) -> None:
    value = [{"role": "user", "content": "übe"}]
    compact = msgspec.json.encode(value)
    assert facts(msgspec.json.encode({"model": "a", key: value})).text_bytes == len(compact)


PAYLOAD = "A" * 5000


@pytest.mark.parametrize(
    ("form", "key", "part", "tokens"),
    [
        (CHAT, "messages", {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PAYLOAD}}, 1105),
        (CHAT, "messages", {"type": "input_audio", "input_audio": {"data": PAYLOAD, "format": "wav"}}, 600),
        (CHAT, "messages", {"type": "file", "file": {"file_data": PAYLOAD}}, 4000),
        (RESPONSES, "input", {"type": "input_image", "image_url": PAYLOAD}, 1105),
        (MESSAGES, "messages", {"type": "image", "source": {"type": "base64", "data": PAYLOAD}}, 1600),
        (MESSAGES, "messages", {"type": "document", "source": {"type": "base64", "data": PAYLOAD}}, 4600),
        (GEMINI, "contents", {"inlineData": {"mimeType": "image/png", "data": PAYLOAD}}, 1032),
        (GEMINI, "contents", {"inline_data": {"mime_type": "audio/wav", "data": PAYLOAD}}, 1920),
        (GEMINI, "contents", {"fileData": {"mimeType": "application/pdf", "fileUri": PAYLOAD}}, 1032),
    ],
)
def test_media_counts_flat_and_not_as_text(form: Format, key: str, part: dict[str, object], tokens: int) -> None:
    turn = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part, part]}]
    found = facts(msgspec.json.encode({"model": "a", key: turn}), form)
    assert found.media_tokens == 2 * tokens
    assert 40 < found.text_bytes < 500


@pytest.mark.parametrize(
    ("form", "key", "part"),
    [
        (CHAT, "messages", {"type": "text", "text": PAYLOAD}),
        (CHAT, "messages", {"type": "text", "text": PAYLOAD, "x": "file"}),
        (MESSAGES, "messages", {"type": "document", "source": {"type": "text", "data": PAYLOAD}}),
        (GEMINI, "contents", {"text": PAYLOAD + ' "inlineData"', "inlineData": None}),
    ],
)
def test_text_that_speaks_of_media_stays_text(form: Format, key: str, part: dict[str, object]) -> None:
    found = facts(msgspec.json.encode({"model": "a", key: [{"role": "user", "content": [part]}]}), form)
    assert found.media_tokens == 0
    assert found.text_bytes > 5000


def test_media_in_bytes_that_are_no_text_is_refused() -> None:
    with pytest.raises(UnreadableRequestError) as caught:
        facts(b'{"model":"a","messages":[{"type":"image_url","x":"\xff"}]}')
    assert caught.value.code == "invalid_json"


def test_a_rewrite_leaves_every_other_value_as_it_was() -> None:
    body = b'{ "model":"a", "x": 1.10e5, "y": [ 1,\n2 ], "z": "\\u00e9", "max_tokens": 5}'
    rewritten = CHAT.rewrite(body, b"", model="b", include_usage=True)
    before, after = read_members(body, frozenset()), read_members(rewritten, frozenset())
    assert bytes(after.pop("model")) == b'"b"'
    assert bytes(after.pop("stream_options")) == b'{"include_usage":true}'
    del before["model"]
    assert {key: bytes(raw) for key, raw in after.items()} == {key: bytes(raw) for key, raw in before.items()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
    ],
)
def test_asking_for_the_usage_event_keeps_the_other_options(options: object, expected: object) -> None:
    body = msgspec.json.encode({"model": "a", "stream_options": options})
    rewritten = msgspec.json.decode(CHAT.rewrite(body, b"", model=None, include_usage=True))
    assert rewritten == {"model": "a", "stream_options": expected}


def test_only_openai_bodies_are_asked_for_usage_and_gemini_needs_no_model() -> None:
    assert MESSAGES.rewrite(b'{"model":"a"}', b"", model="b", include_usage=True) == b'{"model":"b"}'
    assert GEMINI.rewrite(b'{"model":"a"}', b"", model="b", include_usage=True) == b'{"model":"b"}'
    assert GEMINI.rewrite(b'{ "contents":[]}', b"", model="b", include_usage=True) == b'{ "contents":[]}'
    assert GEMINI.rewrite(b'{"model":"a"}', b"", model=None, include_usage=False) == b'{"model":"a"}'
