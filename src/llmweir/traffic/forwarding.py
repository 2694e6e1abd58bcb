"""Which headers and parameters pass through the proxy, and which it adds: bytes in, bytes or latin-1 text out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from llmweir.decision import Dialect
from llmweir.traffic.paths import dialect_of

RawHeaders = Iterable[tuple[bytes, bytes]]
TextHeaders = list[tuple[str, str]]
"""Names and values as latin-1 text, one character a byte."""

HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
"""Meant for one connection only (RFC 9110 7.6.1), besides `Proxy-*` and what `Connection` names."""

CALLER_KEY_HEADERS = frozenset(
    {b"authorization", b"x-api-key", b"api-key", b"ocp-apim-subscription-key", b"x-goog-api-key"}
)

KEY_HEADERS: dict[Dialect, tuple[str, str]] = {
    "openai": ("authorization", "Bearer "),
    "anthropic": ("x-api-key", ""),
    "gemini": ("x-goog-api-key", ""),
}
"""The header in which each provider reads a key, and what stands before the key."""

# `expect`: the body is here already. `host`, `content-length`: set anew for this connection.
_SET_ANEW = frozenset({b"host", b"content-length", b"expect", b"x-forwarded-for"})
# A server that maps headers to CGI names reads `_` as `-`, so such spellings could pass for ours.
_DROPPED_PREFIXES = (b"proxy-", b"x-llmweir-", b"x_llmweir_", b"x-llmweir_", b"x_llmweir-")


class HeaderRules:
    """Turns a caller's request headers into those for the upstream, by settings that are read once."""

    def __init__(
        self, upstream_api_key: str | None, forward_caller_key: bool, caller_key_header: str | None = None
    ) -> None:
        dropped = HOP_BY_HOP | _SET_ANEW
        if not forward_caller_key:
            dropped |= CALLER_KEY_HEADERS
            if caller_key_header:
                dropped |= {caller_key_header.lower().encode("latin-1")}
        self._dropped = dict.fromkeys(KEY_HEADERS, dropped)
        self._key_headers: dict[Dialect, TextHeaders] = {dialect: [] for dialect in KEY_HEADERS}
        if upstream_api_key:
            for dialect, (name, prefix) in KEY_HEADERS.items():
                self._dropped[dialect] = dropped | {name.encode()}
                self._key_headers[dialect] = [(name, prefix + upstream_api_key)]

    def request_headers(self, scope: Mapping[str, Any], *, keep_length: bool = False) -> TextHeaders:
        """The headers to send for a request, without `host`.

        `content-length` passes only with `keep_length`: for a body that is streamed on as it comes.
        """
        raw: list[tuple[bytes, bytes]] = scope["headers"]
        dialect = dialect_of(scope["path"])
        dropped = self._dropped[dialect] | named_by_connection(raw)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in raw
            if name not in dropped and not name.startswith(_DROPPED_PREFIXES)
        ]
        if keep_length:
            headers += [("content-length", value.decode("latin-1")) for name, value in raw if name == b"content-length"]
        headers += forwarded_headers(scope, headers)
        headers += self._key_headers[dialect]
        caller = scope.get("state", {}).get("llmweir")
        if caller is not None:
            headers += identity_headers(caller)
        return headers


def named_by_connection(raw: RawHeaders) -> frozenset[bytes]:
    """Lower-case names of the headers that `Connection` declares to be for this connection only."""
    values = [value for name, value in raw if name == b"connection"]
    if not values:
        return frozenset()
    return frozenset(option.strip().lower() for value in values for option in value.split(b","))


def forwarded_headers(scope: Mapping[str, Any], headers: TextHeaders) -> TextHeaders:
    """`x-forwarded-for` with this hop's peer at the end; `-proto` and `-host` unless an outer proxy has set them."""
    present = {name for name, _ in headers}
    raw: list[tuple[bytes, bytes]] = scope["headers"]
    hops = [value.decode("latin-1") for name, value in raw if name == b"x-forwarded-for"]
    client = scope.get("client")
    if client:
        hops.append(client[0])
    added = [("x-forwarded-for", ", ".join(hops))] if hops else []
    if "x-forwarded-proto" not in present:
        added.append(("x-forwarded-proto", scope.get("scheme", "http")))
    if "x-forwarded-host" not in present:
        added += [("x-forwarded-host", value.decode("latin-1")) for name, value in raw if name == b"host"]
    return added


def identity_headers(caller: Any) -> TextHeaders:
    """Who is calling, for the gateway behind: `x-llmweir-*`, empty ones left out.

    `caller` is what the gate puts into `scope["state"]["llmweir"]`.
    """
    headers = [
        (name, percent_encoded(value))
        for name, value in (
            ("x-llmweir-user-id", caller.user_id),
            ("x-llmweir-user-alias", caller.user_alias),
            ("x-llmweir-user-role", caller.user_role),
            ("x-llmweir-request-id", caller.request_id),
        )
        if value
    ]
    if caller.teams:
        headers.append(("x-llmweir-teams", _json_text(caller.teams)))
    if caller.metadata:
        headers.append(("x-llmweir-metadata", _json_text(caller.metadata)))
    if caller.guardrails:
        headers.append(("x-llmweir-guardrails", _json_text(caller.guardrails)))
    if caller.permissions:
        headers.append(("x-llmweir-permissions", _json_text(caller.permissions)))
    return headers


def percent_encoded(text: str) -> str:
    """The text with all but printable ASCII percent-encoded as UTF-8; so too spaces at its ends, which HTTP trims."""
    if text.isascii() and text.isprintable() and text[:1] != " " and text[-1:] != " ":
        return text
    start, end = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    return "".join(
        char if " " <= char <= "~" and start <= place < end else _percent_encoded_char(char)
        for place, char in enumerate(text)
    )


def _percent_encoded_char(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _json_text(value: Any) -> str:
    return _JSON.encode(value)


_JSON = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))


def without_key_parameter(query: bytes) -> bytes:
    """The query without the `key` parameter in which Gemini's clients send their key; all else as it was."""
    if b"key" not in query and b"%" not in query:
        return query
    return b"&".join(part for part in query.split(b"&") if unquote_to_bytes(part.partition(b"=")[0]) != b"key")


def answer_headers(status: int, raw: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The upstream's answer headers to pass on, in order; names in lower case, as ASGI has them.

    A 304 may tell the length of what it does not carry (RFC 9110 8.6); ASGI servers take that for a body owed.
    """
    lowered = [(name.lower(), value) for name, value in raw]
    dropped = HOP_BY_HOP | named_by_connection(lowered)
    if status == 304:
        dropped |= {b"content-length"}
    return [pair for pair in lowered if pair[0] not in dropped and not pair[0].startswith(b"proxy-")]
