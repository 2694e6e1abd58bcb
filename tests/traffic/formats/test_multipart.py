from __future__ import annotations

import pytest

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.formats import RequestFacts
from llmweir.traffic.formats.multipart import AUDIO_FILE_TOKENS, TranscriptionFormat

FORM = TranscriptionFormat()
TYPE = b"multipart/form-data; boundary=b0"
FILE = (
    b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--b\0\xff'
)


def field(name: str, value: str, more: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}'.encode()


def form(*parts: bytes, end: bytes = b"--b0--\r\n") -> bytes:
    return b"".join(b"--b0\r\n" + part + b"\r\n" for part in parts) + end


def test_a_form_gives_its_facts() -> None:
    body = form(FILE, field("model", "whisper-1"), field("stream", "True"), field("prompt", "Elbe"))
    assert FORM.facts(body, TYPE, None) == RequestFacts("whisper-1", True, 4, AUDIO_FILE_TOKENS)
    assert FORM.facts(body, b'Multipart/Form-Data; boundary="b0"', "whisper-1").model == "whisper-1"
    assert FORM.facts(form(FILE), TYPE, "w") == RequestFacts("w", False, 0, AUDIO_FILE_TOKENS)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(form(FILE), "missing_model", id="no model"),
        pytest.param(form(field("model", "")), "missing_model", id="empty model"),
        pytest.param(form(field("model", "a"), field("model", "b")), "duplicate_model", id="two models"),
        pytest.param(form(field("model", "a"), field("Model", "b")), "duplicate_model", id="two in two cases"),
        pytest.param(form(field("MODEL", "a")), "ambiguous_model", id="capitals"),
        pytest.param(form(field("model[]", "a")), "ambiguous_model", id="brackets"),
        pytest.param(form(field("model", "a", '; filename="x"')), "ambiguous_model", id="a file"),
        pytest.param(form(field("model", "a", "; name*=utf-8''x")), "invalid_form", id="an extended name"),
        pytest.param(form(field("model", "a", '; name="x"')), "invalid_form", id="two names"),
        pytest.param(
            form(b"Content-Disposition: form-data; name=x\r\n" + field("model", "a")), "invalid_form", id="two headers"
        ),
        pytest.param(form(b"Content-Transfer-Encoding: base64\r\n" + field("model", "a")), "invalid_form", id="base64"),
        pytest.param(form(b"X: y\r\n\r\na"), "invalid_form", id="no disposition"),
        pytest.param(form(b'Content-Disposition: form-data; name="model"\r\n\r\n\xff'), "invalid_form", id="no UTF-8"),
        pytest.param(form(field("model", "a"), end=b""), "invalid_form", id="cut off"),
        pytest.param(b"", "invalid_form", id="empty"),
        pytest.param(b"model=a", "invalid_form", id="no form"),
    ],
)
def test_a_form_that_cannot_be_read_for_certain_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(UnreadableRequestError) as caught:
        FORM.facts(body, TYPE, None)
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=b0; boundary=b1",
        b"multipart/mixed; boundary=b0",
        b"multipart/form-data; boundary=b0; charset=utf-16",
    ],
)
def test_another_content_type_is_refused(content_type: bytes) -> None:
    with pytest.raises(UnreadableRequestError) as caught:
        FORM.facts(form(field("model", "a")), content_type, None)
    assert (caught.value.status, caught.value.code) == (415, "unsupported_content_type")


def test_a_model_in_the_path_and_another_in_the_form_is_refused() -> None:
    with pytest.raises(UnreadableRequestError) as caught:
        FORM.facts(form(field("model", "a")), TYPE, "b")
    assert caught.value.code == "model_mismatch"


def test_a_rewrite_changes_the_model_alone() -> None:
    body = form(FILE, field("model", "a"), field("prompt", "model"))
    expected = form(FILE, field("model", "whisper-é"), field("prompt", "model"))
    assert FORM.rewrite(body, TYPE, model="whisper-é", include_usage=False) == expected
    assert FORM.rewrite(body, TYPE, model=None, include_usage=True) == body
    assert FORM.rewrite(form(FILE), TYPE, model="b", include_usage=True) == form(FILE)
