"""Long inputs of awkward shapes: what tempts a reader into quadratic time, unbounded memory or an odd exception."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_SIZE: Final = 300_000


def _repeated(unit: bytes, size: int = _SIZE) -> bytes:
    return unit * (size // len(unit))


def _members(keys: int) -> bytes:
    return b",".join(b'"k%d":%d' % (number, number) for number in range(keys))


SHAPES: Mapping[str, bytes] = MappingProxyType(
    {
        "deep lists": b'{"model":"m","messages":' + b"[" * (_SIZE // 2) + b"]" * (_SIZE // 2) + b"}",
        "deep objects": b'{"model":"m","metadata":' + _repeated(b'{"a":'),
        "deep lists of media": b'{"model":"m","messages":[{"type":"file"},'
        + b"[" * (_SIZE // 2)
        + b"]" * (_SIZE // 2)
        + b"]}",
        "one key many times": b'{"model":"m",' + _repeated(b'"a":1,') + b'"a":1}',
        "many keys": b'{"model":"m",' + _members(60_000) + b"}",
        "many keys and blanks": b'{"model":"m",' + _members(40_000).replace(b",", b" \n , ") + b"}",
        "keys spelled in escapes": b'{"model":"m",' + _repeated(b'"\\u0061":1,') + b'"b":1}',
        "a long number": b'{"model":"m","max_tokens":' + b"9" * _SIZE + b"}",
        "a number of 4301 digits": b'{"model":"m","max_tokens":'
        + b"9" * 4301
        + b',"metadata":{"n":'
        + b"9" * 4301
        + b"}}",
        "many large exponents": b'{"model":"m","messages":[' + _repeated(b"1e999999,") + b"1]}",
        "a long exponent": b"1e" + b"9" * _SIZE,
        "lone surrogates": b'{"model":"m","messages":"' + _repeated(b"\\ud800") + b'"}',
        "low surrogates in keys": b'{"model":"m","cache":{' + _repeated(b'"\\udc00":1,') + b'"a":1}}',
        "byte order marks": _repeated(b"\xef\xbb\xbf"),
        "a list of empty objects": b'{"model":"m","messages":[' + _repeated(b"{},") + b"{}]}",
        "many parts of media": b'{"model":"m","messages":[' + _repeated(b'{"type":"image_url","url":"x"},') + b"1]}",
        "blanks": _repeated(b" "),
        "blanks before a comma": b'data: {"usage"' + _repeated(b" ") + b"}\n\n",
        "commas and blanks": b'data: {"usage":null' + _repeated(b", ") + b"}\n\n",
        "a run of null usages": b"data: {" + _repeated(b'"usage":null,') + b"}\n\n",
        "tiny lines": _repeated(b"a\n"),
        "empty lines": _repeated(b"\n"),
        "returns": _repeated(b"\r"),
        "returns and line feeds": _repeated(b"\r\n"),
        "lines of data": _repeated(b"data:\n"),
        "lines of data and one end": _repeated(b"data: 1\n") + b"\n",
        "events without end": b"data: " + _repeated(b"x"),
        "usages on lines that are no data": _repeated(b'x"usage"\n'),
        "usages on lines of data": _repeated(b'data: "usage"\n'),
        "ids with NUL": _repeated(b"id: \0\n"),
        "parts of a form": _repeated(b"--X\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n") + b"--X--\r\n",
        "headers of a part": b"--X\r\n" + _repeated(b"A: b\r\n"),
        "a part's endless header": b"--X\r\nContent-Disposition: form-data; name=" + _repeated(b" "),
        "nearly boundaries": b"--X\r\nContent-Disposition: form-data; name=a\r\n\r\n" + _repeated(b"\r\n--"),
        "a boundary without end": b"--X\r\nContent-Disposition: form-data; name=a\r\n\r\n" + _repeated(b"\r\n-X"),
        "slashes": b"/openai/deployments" + _repeated(b"/a"),
        "slashes and a digit": b"/openai/deployments/"
        + _repeated(b"a", _SIZE // 2)
        + b"/"
        + _repeated(b"b", _SIZE // 2)
        + b"1",
        "percent signs": b"/v1/" + _repeated(b"%25"),
        "colons": b"/v1beta/models/" + _repeated(b":a"),
        "headers": _repeated(b"x: y\n"),
        "dots": b"a@" + _repeated(b"a."),
        "one long label": b"a@" + _repeated(b"a"),
        "letters beyond ASCII": _repeated("ü".encode()),
        "at signs": _repeated(b"@"),
        "brackets of a host": b"smtp://" + _repeated(b"["),
        "angle brackets": b"smtp://h?from=" + _repeated(b"<"),
        "digits": _repeated(b"1"),
        "digits behind a point": b"0." + _repeated(b"1"),
        "NULs": _repeated(b"\0"),
        "bytes that are not text": _repeated(b"\xff\xfe"),
    }
)
_PREFIXES: Final[Mapping[str, bytes]] = MappingProxyType(
    {
        "json_request": b"\0\0\0",
        "form_request": b"\0multipart/form-data; boundary=X\n",
        "path": b"\0gpt-4o\n",
        "answer": b"\0",
        "stream": b"\0\x20",
        "sse": b"\x20",
        "sse_bounded": b"\x20\x20",
        "usage_filter": b"\x20",
        "api_key": b"\0",
        "duration": b"\x10\x20",
        "command": b"\2\0\1",
    }
)


def fill(target: str, shape: str) -> bytes:
    """Give a shape behind what the target reads first."""
    return _PREFIXES.get(target, b"") + SHAPES[shape]
