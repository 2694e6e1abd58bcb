"""Sets inline images, audio and documents apart from the text of a request, each at a flat allowance of tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from llmweir.traffic.formats.json_body import bad_request

OPENAI_MEDIA_TOKENS: Final[Mapping[str, int]] = {
    # Images: the 2048 x 4096 example of OpenAI's vision guide for gpt-4o, 85 + 6 tiles x 170.
    "image_url": 1105,
    "input_image": 1105,
    "computer_screenshot": 1105,
    # Audio: a minute at the 10 tokens a second of OpenAI's audio pricing.
    "input_audio": 600,
    # Documents: a page is billed as its text and its picture; two pages.
    "file": 4000,
    "input_file": 4000,
    "video_url": 15780,
    "image_generation_call": 1105,
}
ANTHROPIC_MEDIA_TOKENS: Final[Mapping[str, int]] = {
    # Images: about 1,600 tokens for the largest that is not scaled down (Anthropic's vision guide).
    "image": 1600,
    # Documents: 1,500 to 3,000 tokens a page and its picture (Anthropic's PDF guide); one page.
    "document": 4600,
}
GEMINI_MEDIA_TOKENS: Final[Mapping[str, int]] = {
    # Images: 4 tiles at 258; audio: a minute at 32 tokens a second; video: a minute at 263; other: 4 pages at 258
    # (Gemini's guide to tokens).
    "image": 1032,
    "audio": 1920,
    "video": 15780,
    "": 1032,
}
_PAYLOADS: Final = frozenset(("data", "url", "image_url", "file_data", "result", "fileUri", "file_uri"))
_GEMINI_KEYS: Final = ("inlineData", "inline_data", "fileData", "file_data")
_MEDIA_TYPE: Final = re.compile(
    rb'"(?:image|image_url|input_image|computer_screenshot|input_audio|file|input_file|video_url|document'
    rb'|image_generation_call)"'
)
_DECODE: Final = msgspec.json.Decoder().decode


def has_media(raw: msgspec.Raw) -> bool:
    """Tell whether a conversation may carry media; a plain string has no `type`, so most cost one search."""
    text = bytes(raw)
    return text.find(b'"type"') >= 0 and _MEDIA_TYPE.search(text) is not None


def measure_media(raw: msgspec.Raw, allowances: Mapping[str, int]) -> tuple[int, int]:
    """Return the bytes of media payload in a JSON value and the tokens allowed for it.

    Raises `UnreadableRequestError` where the value is nested too deep to be walked.
    """
    payload_bytes = tokens = 0
    for part in _parts(raw):
        allowance = _allowance(part, allowances)
        if allowance is not None:
            tokens += allowance
            payload_bytes += _payload_bytes(part, allowances)
    return payload_bytes, tokens


def _parts(raw: msgspec.Raw) -> list[dict[str, object]]:
    """Return every object inside a JSON value."""
    try:
        todo: list[object] = [_DECODE(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request("invalid_json", "The body is nested too deep or not UTF-8.") from error
    found: list[dict[str, object]] = []
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            found.append(value)
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
    return found


def _allowance(part: dict[str, object], allowances: Mapping[str, int]) -> int | None:
    if allowances is GEMINI_MEDIA_TOKENS:
        blob = next((part[key] for key in _GEMINI_KEYS if key in part), None)
        if not isinstance(blob, dict):
            return None
        mime = str(blob.get("mimeType") or blob.get("mime_type") or "")
        return allowances.get(mime.partition("/")[0], allowances[""])
    kind = part.get("type")
    source = part.get("source")
    if isinstance(source, dict) and source.get("type") in ("text", "content"):
        return None  # a document given as text counts as text
    return allowances.get(kind) if isinstance(kind, str) else None


def _payload_bytes(part: dict[str, object], allowances: Mapping[str, int]) -> int:
    """Return the length of the base64 or URL of a part, in it or one object further down that is no part itself.

    No text may count twice: more payload than there is text would make the rest less than nothing.
    """
    total = 0
    for key, value in part.items():
        if isinstance(value, dict):
            if _allowance(value, allowances) is not None:
                continue
            total += sum(len(text) for inner, text in value.items() if inner in _PAYLOADS and isinstance(text, str))
        elif key in _PAYLOADS and isinstance(value, str):
            total += len(value)
    return total
