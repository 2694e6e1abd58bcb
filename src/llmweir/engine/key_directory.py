"""The directory of API keys: a page of all of them, or of a team's, the oldest first, and how many there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from llmweir.engine import keys
from llmweir.engine.any_link import AnyLink
from llmweir.engine.catalogue import Catalogue, Lines, Order


class KeyEntry(msgspec.Struct, frozen=True):
    """What of an API key's record the directory files; `key_hash` is the key as the store names it."""

    key_hash: str
    user_id: str
    team_id: str | None
    created_at_ms: int


class KeyQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which API keys, and which page of them; the directory knows of `team_id` alone."""

    page: int = 1
    size: int = 10
    user_id: str | None = None
    key_alias: str | None = None
    team_id: str | None = None


class KeyDirectory:
    """The API keys of one store.

    `entries` reads the records of many key hashes afresh, in their order, None where there is none. `clock` gives the
    time in ms instead of the server's clock (for tests).
    """

    def __init__(
        self,
        link: AnyLink,
        entries: Callable[[Sequence[str]], Awaitable[list[KeyEntry | None]]],
        *,
        clock: Callable[[], int] | None = None,
    ) -> None:
        async def truth(key_hashes: Sequence[str]) -> list[Lines]:
            found = await entries(key_hashes) if key_hashes else []
            return [_lines(entry) if entry is not None else "" for entry in found]

        self._keys = keys.catalogue("keys")
        self._catalogue = Catalogue(link, self._keys, truth, clock=clock)

    def writing(self, key_hash: str) -> AbstractAsyncContextManager[None]:
        """Wraps whatever makes a key, gives it to another team, or deletes it: `async with`."""
        return self._catalogue.writing(key_hash)

    async def file_again(self, key_hashes: Sequence[str]) -> None:
        """Files keys as their records are, whatever the directory had: for what it has lost or never had."""
        await self._catalogue.file_again(key_hashes)

    async def key_hashes(self, query: KeyQuery) -> tuple[list[tuple[str, str]], int]:
        """A page of key hashes, each with its user's id, and how many keys there are on all pages."""
        suffix = keys.team_place(query.team_id) if query.team_id is not None else ""
        order, start = Order((self._keys.place(suffix),), is_reversed=True), (query.page - 1) * query.size
        found, total = await self._catalogue.listed(lambda: self._catalogue.page(order, start, start + query.size))
        return [(key_hash, _user_id(lines)) for key_hash, lines in found.items()], total


def _lines(entry: KeyEntry) -> Lines:
    places = ["", keys.team_place(entry.team_id)] if entry.team_id is not None else [""]
    return f"{entry.created_at_ms}\nd{entry.user_id}\n" + "".join(f"c{place}\n" for place in places)


def _user_id(lines: Lines) -> str:
    return lines.split("\n")[1][1:]
