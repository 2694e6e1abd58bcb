"""Who is calling: the API key a request carries, or what the app's own callable says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import msgspec

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.asgi import Scope

Identify = Callable[[Scope], "str | Awaitable[str | None] | None"]
"""The app's own way to name its callers: a user id, or None for nobody; sync or async."""

# Google's front ends and several frameworks read a method from these: a free GET would be a POST behind the gate.
_METHOD_HEADERS = frozenset((b"x-http-method-override", b"x-http-method", b"x-method-override"))
_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"ocp-apim-subscription-key", b"x-goog-api-key")


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """What the gate needs of a request's headers, read in one pass.

    `api_key` is None where the request carries none. `declared_bytes` is the Content-Length, -1 without one.
    `upgrades` says that it asks for a WebSocket; other upgrades (Java's clients offer h2c) are ignored, as HTTP allows.
    """

    api_key: str | None
    content_type: bytes
    content_encoding: bytes
    accept: bytes
    declared_bytes: int
    upgrades: bool


NO_HEAD = RequestHead(None, b"", b"", b"", -1, False)
"""For a request refused before its headers were read."""


class HeadReader:
    """Reads request heads; `key_header` is a further header a key may come in, after the usual ones."""

    def __init__(self, key_header: str | None = None) -> None:
        names = (*_KEY_HEADERS, key_header.lower().encode()) if key_header else _KEY_HEADERS
        self._ranks = {name: rank for rank, name in enumerate(names)}
        self._wanted = frozenset(
            (*names, *_METHOD_HEADERS, b"content-type", b"content-encoding", b"accept", b"content-length", b"upgrade")
        )

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> RequestHead:
        """Reads a head; raises UnreadableRequestError where what stands behind might read another request.

        - A header that decides something comes twice: Authorization, Content-Type ...
        - A header that says another method than the request's own.
        """
        wanted = self._wanted
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in wanted:
                if name in found and name != b"accept":
                    raise UnreadableRequestError(400, "duplicate_header", f"The header {name.decode()} comes twice.")
                found[name] = value
        if not _METHOD_HEADERS.isdisjoint(found):
            raise UnreadableRequestError(400, "method_override", "Send the method itself, not a header that names it.")
        get = found.get
        length = get(b"content-length", b"")
        return RequestHead(
            self._api_key(found),
            get(b"content-type", b""),
            get(b"content-encoding", b""),
            get(b"accept", b""),
            int(length) if length.isdigit() and len(length) < 20 else -1,
            b"websocket" in get(b"upgrade", b"").lower(),
        )

    def _api_key(self, found: dict[bytes, bytes]) -> str | None:
        for name in self._ranks:
            value = found.get(name)
            if value is None:
                continue
            if name == b"authorization":
                if value[:7].lower() != b"bearer ":
                    continue
                value = value[7:]
            key = value.strip()
            if key:
                return key.decode("latin-1")
        return None
