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
    """What the gate needs of a request's headers.

    `api_key` is None where the request carries none. `declared_bytes` is the Content-Length, -1 without one.
    `upgrades` says that it asks for a WebSocket; other upgrades (Java's clients offer h2c) are ignored, as HTTP allows.
    `fields` are all headers by name, in their order; `repeats` says that some come more than once, the last one counts.
    """

    api_key: str | None
    content_type: bytes
    declared_bytes: int
    upgrades: bool
    fields: dict[bytes, bytes] = {}
    repeats: bool = False

    @property
    def content_encoding(self) -> bytes:
        """The content coding of the body, empty where there is none."""
        return self.fields.get(b"content-encoding", b"")

    @property
    def accept(self) -> bytes:
        """What the caller would have as an answer."""
        return self.fields.get(b"accept", b"")


NO_HEAD = RequestHead(None, b"", -1, False)
"""For a request refused before its headers were read."""


class HeadReader:
    """Reads request heads; `key_header` is a further header a key may come in, after the usual ones."""

    def __init__(self, key_header: str | None = None) -> None:
        self._key_names = (*_KEY_HEADERS, key_header.lower().encode()) if key_header else _KEY_HEADERS
        self._once = frozenset(
            (*self._key_names, *_METHOD_HEADERS, b"content-type", b"content-encoding", b"content-length", b"upgrade")
        )

    @property
    def key_headers(self) -> tuple[str, ...]:
        """The headers that a key may come in beside Authorization, in the order in which they are looked at."""
        return tuple(name.decode() for name in self._key_names[1:])

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> RequestHead:
        """Reads a head; raises UnreadableRequestError where what stands behind might read another request.

        - A header that decides something comes twice: Authorization, Content-Type ...
        - A header that says another method than the request's own.
        """
        pairs = headers if isinstance(headers, list) else list(headers)
        fields = dict(pairs)
        repeats = len(fields) != len(pairs)
        if repeats:
            self._refuse_duplicates(pairs)
        if not _METHOD_HEADERS.isdisjoint(fields):
            raise UnreadableRequestError(400, "method_override", "Send the method itself, not a header that names it.")
        length = fields.get(b"content-length", b"")
        return RequestHead(
            self._api_key(fields),
            fields.get(b"content-type", b""),
            int(length) if length.isdigit() and len(length) < 20 else -1,
            b"upgrade" in fields and b"websocket" in fields[b"upgrade"].lower(),
            fields,
            repeats,
        )

    def _refuse_duplicates(self, pairs: list[tuple[bytes, bytes]]) -> None:
        seen: set[bytes] = set()
        for name, _ in pairs:
            if name in seen and name in self._once:
                raise UnreadableRequestError(400, "duplicate_header", f"The header {name.decode()} comes twice.")
            seen.add(name)

    def _api_key(self, fields: dict[bytes, bytes]) -> str | None:
        value = fields.get(b"authorization")
        if value is not None and value[:7].lower() == b"bearer " and (key := value[7:].strip()):
            return key.decode("latin-1")
        for name in self._key_names:
            if name in fields and name != b"authorization" and (key := fields[name].strip()):
                return key.decode("latin-1")
        return None
