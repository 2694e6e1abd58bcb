"""OpenAI's transcriptions: a multipart form whose one `model` field must be read for certain."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from llmweir.decision import Dialect
from llmweir.errors import UnreadableRequestError
from llmweir.traffic.formats.base import RequestFacts
from llmweir.traffic.formats.json_body import bad_request, check_model
from llmweir.traffic.formats.openai import OpenAITally, read_usage
from llmweir.traffic.formats.stream import BufferedStreamReader
from llmweir.usage import Usage

AUDIO_FILE_TOKENS: Final = 600
"""What an audio file is held at: a minute at 10 tokens a second (OpenAI's audio pricing)."""

_CONTENT_TYPE: Final = re.compile(
    rb"""multipart/form-data\s*;\s*boundary=("[^"\\]{1,70}"|[^\s";,=]{1,70})\s*(;\s*charset=utf-8\s*)?""", re.IGNORECASE
)
_NAME: Final = re.compile(rb'\Aform-data\s*;\s*name="?([^"\\;]*)"?(\s*;\s*filename="[^"]*")?\s*\Z', re.IGNORECASE)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_KNOWN: Final = frozenset(("model", "stream", "prompt"))


class _Part(msgspec.Struct):
    """One part: its headers, lower-cased names, and where its content lies in the body."""

    headers: list[tuple[bytes, bytes]]
    start: int = -1
    end: int = -1


class TranscriptionFormat:
    """`POST /v1/audio/transcriptions`."""

    dialect: Dialect = "openai"
    endpoint = "transcriptions"
    output_is_free = True
    has_usage_event = False

    def facts(self, body: bytes, content_type: bytes, path_model: str | None) -> RequestFacts:
        """Read a form; raises `UnreadableRequestError` where it cannot be read for certain."""
        fields = _fields(body, content_type)
        part = fields.get("model")
        if part is None and path_model is None:
            raise bad_request("missing_model", "The form must name a model.", "model")
        model = path_model or ""
        if part is not None:
            model = check_model(_text(body, part))
            if path_model not in (None, model):
                raise bad_request("model_mismatch", "The path names one model and the form another.", "model")
        stream = fields.get("stream")
        prompt = fields.get("prompt")
        return RequestFacts(
            model,
            stream is not None and _text(body, stream).lower() in ("true", "1", "on", "yes"),
            prompt.end - prompt.start if prompt is not None else 0,
            AUDIO_FILE_TOKENS,
        )

    def rewrite(self, body: bytes, content_type: bytes, *, model: str | None, include_usage: bool) -> bytes:
        """Return the form with another model, every other byte as it was."""
        part = _fields(body, content_type).get("model")
        if model is None or part is None:
            return body
        return body[: part.start] + model.encode() + body[part.end :]

    def usage(self, body: bytes) -> Usage | None:
        """Read the usage of an answer; None where it counts seconds, or is plain text."""
        return read_usage(body)

    def produced_text_bytes(self, body: bytes) -> int:
        """Return 0: without a usage, transcripts are paid by the length of the audio."""
        return 0

    def stream_reader(self) -> BufferedStreamReader:
        """Return a reader for one streamed transcript."""
        return BufferedStreamReader(OpenAITally)


def _text(body: bytes, part: _Part) -> str:
    try:
        return body[part.start : part.end].decode()
    except UnicodeDecodeError as error:
        raise bad_request("invalid_form", "A field of the form is not UTF-8.") from error


def _fields(body: bytes, content_type: bytes) -> dict[str, _Part]:
    """Return the parts by name; of the fields that matter, a second one or another letter case is refused."""
    fields: dict[str, _Part] = {}
    for part in _parse(body, content_type):
        name, is_file = _name(part)
        folded = name.casefold().strip().removesuffix("[]")
        if folded not in _KNOWN:
            continue
        if folded in fields:
            raise bad_request(f"duplicate_{folded}", f"The form has more than one {folded}.", folded)
        if folded != name or is_file:
            raise bad_request(f"ambiguous_{folded}", f"{folded} must be a plain field of the form.", folded)
        fields[name] = part
    return fields


def _name(part: _Part) -> tuple[str, bool]:
    """Return a part's name and whether it is a file.

    Refused, for form readers differ on them: no or two Content-Dispositions, a name given twice or as `name*`,
    backslashes in it, a Content-Transfer-Encoding that changes the content, and control characters: a lone LF in one
    header begins another for some.
    """
    dispositions = [value for name, value in part.headers if name == b"content-disposition"]
    encodings = {value.lower() for name, value in part.headers if name == b"content-transfer-encoding"}
    match = _NAME.match(dispositions[0]) if len(dispositions) == 1 else None
    has_controls = any(_CONTROL.search(value) for _, value in part.headers)
    if match is None or has_controls or not encodings <= {b"7bit", b"8bit", b"binary"}:
        raise bad_request("invalid_form", "A part of the form has headers that cannot be read for certain.")
    return match[1].decode("utf-8", "replace"), match[2] is not None


def _parse(body: bytes, content_type: bytes) -> list[_Part]:
    match = _CONTENT_TYPE.fullmatch(content_type.strip())
    if match is None:
        raise UnreadableRequestError(415, "unsupported_content_type", "This endpoint takes multipart/form-data.")
    boundary = match[1].strip(b'"')
    collector = _Collector()
    parser = MultipartParser(boundary, collector.callbacks())  # type: ignore[arg-type]  # a plain dict for its TypedDict
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise bad_request("invalid_form", "The form cannot be read.") from error
    if not collector.ended:
        raise bad_request("invalid_form", "The form is cut off.")
    _refuse_other_readings(body, b"--" + boundary, len(collector.parts))
    return collector.parts


def _refuse_other_readings(body: bytes, delimiter: bytes, parts: int) -> None:
    """Refuse a form whose delimiter stands anywhere but on lines of its own, one before each part and one at the end.

    Form readers differ on what else is one, and a second model could lie behind it:

    - `--X--x` ends the form for some, and is text for others;
    - a line that ends in a lone LF or CR, before it or after;
    - blanks behind it, text before the first one.
    """
    start = len(body) - len(body.lstrip(b"\r\n"))
    is_clean = body.startswith(delimiter, start) and body.count(delimiter + b"\r\n") == parts
    if not is_clean or body.count(delimiter) != parts + 1:
        raise bad_request("invalid_form", "The form's boundary is not only on lines of its own.")


class _Collector:
    """Collects the parts from the parser's callbacks."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._field = b""
        self._value = b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": lambda: self.parts.append(_Part([])),
            "on_part_data": self._data,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": lambda: None,
            "on_end": self._end,
        }

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.start = start if part.start < 0 else part.start
        part.end = end

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1].headers.append((self._field.lower().strip(), self._value.strip()))
        self._field = self._value = b""

    def _end(self) -> None:
        self.ended = True
