"""Reads a JSON request body so that no two readers could see two different requests in it."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from llmweir.errors import UnreadableRequestError

Members = dict[str, msgspec.Raw]

MAX_ANSWERS: Final = 1_000_000
_MAX_COUNT: Final = 1_000_000_000
_MAX_MODEL_LENGTH: Final = 256
_DECODE_MEMBERS: Final = msgspec.json.Decoder(Members).decode
_DECODE_TEXT: Final = msgspec.json.Decoder(str).decode
_DECODE_MODEL: Final = msgspec.json.Decoder(str | None).decode
_DECODE_COUNT: Final = msgspec.json.Decoder(int | None).decode
_DECODE_FLAG: Final = msgspec.json.Decoder(bool | None).decode
_DECODE_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_PLAIN_CONTENT_TYPES: Final = frozenset((b"application/json", b"", b"application/json; charset=utf-8"))
_CHARSET: Final = re.compile(rb"""charset\s*=\s*["']?([^\s;,"']*)""")
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_KEY: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def bad_request(code: str, message: str, param: str | None = None) -> UnreadableRequestError:
    """Return a 400 with this code."""
    return UnreadableRequestError(400, code, message, param=param)


def check_json_content_type(content_type: bytes) -> None:
    """Refuse a content type under which an upstream could read something else than UTF-8 JSON.

    - A form type over a JSON body: gateways choose the parser by this header, so `model=...` hidden in a JSON string
      would become the model.
    - Another charset: UTF-7 or UTF-16 readers see other bytes.
    """
    if content_type in _PLAIN_CONTENT_TYPES:
        return
    lowered = content_type.lower()
    if b"form" in lowered:
        message = "This endpoint takes JSON, not a form; send content-type: application/json."
        raise UnreadableRequestError(415, "unsupported_content_type", message)
    charsets = _CHARSET.findall(lowered)
    if lowered.count(b"charset") != len(charsets) or not set(charsets) <= {b"utf-8", b"utf8", b"us-ascii"}:
        raise UnreadableRequestError(415, "unsupported_charset", "The body must be UTF-8.")


def read_members(body: bytes | msgspec.Raw, known: frozenset[str], where: str | None = None) -> Members:
    r"""Decode one JSON object to its members, each value left as it lies in the body.

    Raises `UnreadableRequestError` for what different JSON readers read differently:

    - not one JSON object in UTF-8, nested too deep, a byte order mark, bytes after the end;
    - a key sent twice, in whatever spelling (`"mod\u0065l"`): some take the first, some the last;
    - a key of `known` in another letter case: Go's reader takes `"Model"` for `"model"`.
    """
    try:
        members = _DECODE_MEMBERS(body)
        if not (plain := bytes(body)).isascii():
            plain.decode()  # the values are only skipped over above
    except _NOT_JSON as error:
        raise bad_request("invalid_json", f"{where or 'The body'} must be one JSON object.", where) from error
    # Each member takes its key and value, two quotes, a colon and a comma; a second one would take at least the
    # length of its key and 5 bytes more, so a smaller rest can only be white space or escapes.
    rest = len(body) - len(b"".join(members.values())) - len("".join(members)) - 4 * len(members) - 1
    if rest >= 5 and members and rest >= min(map(len, members)) + 5:
        _refuse_duplicates(bytes(body), members)
    if not known.issuperset(members):
        _refuse_other_case(members, known)
    return members


def _refuse_duplicates(body: bytes, members: Members) -> None:
    """Walk over the top level and refuse a key seen twice; exact, and linear in the body's length."""
    seen: set[str] = set()
    position = body.index(b"{") + 1
    while True:
        key_match = _KEY.match(body, _after_space(body, position))
        if key_match is None:
            return  # the closing brace
        key = _DECODE_TEXT(key_match[0])
        position = _after_space(body, _after_space(body, key_match.end()) + 1)
        value = bytes(members[key])
        end = _after_space(body, position + len(value))
        # `members` holds the last value of a key: an earlier one differs, or is longer, or is the same and seen again.
        if key in seen or not body.startswith(value, position) or body[end : end + 1] not in (b",", b"}"):
            code = "duplicate_model" if key == "model" else "duplicate_key"
            raise bad_request(code, f"The body has more than one {key!a}.", key)
        seen.add(key)
        position = end + 1


def _after_space(body: bytes, position: int) -> int:
    match = _SPACE.match(body, position)
    return position if match is None else match.end()


def _refuse_other_case(members: Members, known: frozenset[str]) -> None:
    """Refuse a key that differs from a known one in letter case only; Unicode folding, as Go's reader does."""
    for key in members:
        if key not in known and (folded := key.casefold()) in known:
            code = "ambiguous_model" if folded == "model" else "ambiguous_key"
            raise bad_request(code, f"The body has {key!a} where {folded!a} is meant.", folded)


def check_model(model: str) -> str:
    """Return a model's name; refuse one that is empty, padded, over 256 characters or has control characters."""
    if not model:
        raise bad_request("missing_model", "The model must not be empty.", "model")
    if len(model) > _MAX_MODEL_LENGTH or model != model.strip() or not model.isprintable():
        raise bad_request("invalid_model", "The model must be a printable name of at most 256 characters.", "model")
    return model


def read_model(members: Members, path_model: str | None, *, required: bool = True) -> str:
    """Read the model of the body or of the path; both may be there only if they agree."""
    raw = members.get("model")
    try:
        model: str | None = None if raw is None else _DECODE_MODEL(raw)
    except _NOT_JSON as error:
        raise bad_request("invalid_model", "The model must be a string.", "model") from error
    if model is None:
        if path_model is None and required:
            raise bad_request("missing_model", "The body must name a model.", "model")
        return "" if path_model is None else check_model(path_model)
    check_model(model)
    if path_model is None:
        return model
    if model != path_model and model.removeprefix("models/") != path_model:
        raise bad_request("model_mismatch", "The path names one model and the body another.", "model")
    return path_model


_NULL: Final = msgspec.Raw(b"null")


def read_count(members: Members, key: str) -> int | None:
    """Read a whole number from 0 to 1e9; None where it is absent or null."""
    raw = members.get(key)
    try:
        count: int | None = None if raw is None else _DECODE_COUNT(raw)
    except _NOT_JSON:
        count = -1
    if count is None:
        return None
    if not 0 <= count <= _MAX_COUNT:
        raise bad_request("invalid_value", f"{key} must be a whole number from 0 to {_MAX_COUNT}.", key)
    return count


def read_flag(members: Members, key: str) -> bool:
    """Read true or false; absent or null is false."""
    raw = members.get(key)
    try:
        return raw is not None and _DECODE_FLAG(raw) is True
    except _NOT_JSON as error:
        raise bad_request("invalid_value", f"{key} must be true or false.", key) from error


def read_object(members: Members, key: str, known: frozenset[str]) -> Members:
    """Read a member that is itself an object, as strictly as the body; absent or null is empty."""
    raw = members.get(key)
    if raw is None or raw == _NULL:
        return {}
    return read_members(raw, known, key)


def largest_count(members: Members, keys: tuple[str, ...]) -> int | None:
    """Return the largest of these counts, None where none is sent: of two spellings of a bound, the dearer holds."""
    largest = None
    for key in keys:
        if key in members:
            count = read_count(members, key)
            if count is not None and (largest is None or count > largest):
                largest = count
    return largest


def prompt_count(raw: msgspec.Raw | None) -> int:
    """Count the prompts in a string, a list of strings, a list of tokens or a list of lists of tokens."""
    if raw is None or not bytes(raw).startswith(b"["):
        return 1
    items = _DECODE_ITEMS(raw)
    if not items or bytes(items[0])[:1] not in (b'"', b"["):
        return 1
    return len(items)


def text_length(members: Members, keys: frozenset[str]) -> int:
    """Return the bytes that these members take in the body."""
    length = 0
    for key in keys.intersection(members):
        length += len(members[key])
    return length


def rewrite_json(body: bytes, *, model: str | None, include_usage: bool) -> bytes:
    """Return the body with another model and with the usage event asked for, every other value verbatim.

    The body has passed `read_members` before.
    """
    members = _DECODE_MEMBERS(body)
    if model is not None:
        members["model"] = msgspec.Raw(msgspec.json.encode(model))
    if include_usage:
        raw = members.get("stream_options", _NULL)
        options: Members = {} if raw == _NULL else _DECODE_MEMBERS(raw)
        members["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": True}))
    return msgspec.json.encode(members)
