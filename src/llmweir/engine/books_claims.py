"""What of a user lies in other slots: claims to names, the way from an API key to its user, the directories."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import msgspec

from llmweir.engine import keys
from llmweir.engine.any_link import AnyLink
from llmweir.engine.books_page import Page
from llmweir.engine.books_rules import Finding
from llmweir.engine.books_walk import scan
from llmweir.engine.claims import WRITING_MS
from llmweir.engine.wire import Reply

_KEY, _EMAIL, _ALIAS = keys.api_key(""), keys.email(""), keys.alias("")
_AT_ONCE = 100


class Unlisted(msgspec.Struct, frozen=True):
    """Users, and API keys by hash, that no list shows, and the users they belong to."""

    users: tuple[str, ...]
    keys: tuple[str, ...]
    owners: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.owners)


class Elsewhere:
    """Compares users with what lies of them in other slots."""

    def __init__(self, link: AnyLink) -> None:
        self._link = link
        self._users, self._keys = keys.catalogue("users"), keys.catalogue("keys")

    async def compare(self, pages: Sequence[Page]) -> tuple[list[Finding], Unlisted]:
        """All findings of these users outside of their own slots, and what the directories do not list."""
        claims, unlisted = await asyncio.gather(self._claims(pages), self._unlisted(pages))
        gone = await self._listed_for_nothing([page for page in pages if not page.exists])
        findings = [Finding(user_id, "The directory does not list this user.") for user_id in unlisted.users]
        owners = {key_hash: page.user_id for page in pages for key_hash in page.keys}
        findings += [Finding(owners[one], f"The directory does not list the API key {one}.") for one in unlisted.keys]
        return [*claims, *gone, *findings], unlisted

    async def _claims(self, pages: Sequence[Page]) -> list[Finding]:
        wanted: list[tuple[str, bytes, str]] = []
        for page in pages:
            wanted += ((page.user_id, keys.api_key(one), f"The API key {one}") for one in page.keys)
            aliases = {alias for alias in page.key_rows.values() if alias is not None}
            wanted += ((page.user_id, keys.alias(one), f"The key alias {one}") for one in sorted(aliases))
            if page.email is not None:
                wanted.append((page.user_id, keys.email(page.email), f"The email address {page.email}"))
        replies = await asyncio.gather(*(self._link.call(b"GET", key) for _, key, _ in wanted))
        findings = []
        for (user_id, key, subject), reply in zip(wanted, replies, strict=True):
            owner = _owner(key, reply)
            if owner != user_id:
                whose = "nobody's" if owner is None else f"that of {owner}"
                findings.append(Finding(user_id, f"{subject} is {whose} outside of the record.", user_id, owner))
        return findings

    async def _unlisted(self, pages: Sequence[Page]) -> Unlisted:
        users = {page.user_id: page.user_id for page in pages if page.exists}
        owners = {key_hash: page.user_id for page in pages for key_hash in page.keys}
        not_users, not_keys = await asyncio.gather(
            self._not_filed(self._users, users), self._not_filed(self._keys, owners)
        )
        known = dict.fromkeys([*not_users, *(owners[key_hash] for key_hash in not_keys)])
        return Unlisted(tuple(not_users), tuple(not_keys), tuple(known))

    async def _not_filed(self, catalogue: keys.CatalogueKeys, owners: dict[str, str]) -> list[str]:
        """Those without a row; what is noted as being written is filed with the next list."""
        if not owners:
            return []
        rows = cast(list[bytes | None], await self._link.call(b"HMGET", catalogue.rows, *owners))
        bare = [one for one, row in zip(owners, rows, strict=True) if not (row or b"").partition(b"\n")[2]]
        written = await asyncio.gather(*(self._link.call(b"ZSCORE", catalogue.writing, one) for one in bare))
        return [one for one, score in zip(bare, written, strict=True) if score is None]

    async def _listed_for_nothing(self, pages: Sequence[Page]) -> list[Finding]:
        if not pages:
            return []
        user_ids = [page.user_id for page in pages]
        rows = cast(list[bytes | None], await self._link.call(b"HMGET", self._users.rows, *user_ids))
        return [
            Finding(page.user_id, "The directory lists a user that does not exist.", is_note=True)
            for page, row in zip(pages, rows, strict=True)
            if row is not None and row.partition(b"\n")[2]
        ]


async def leftovers(link: AnyLink, clock: Callable[[], int] | None) -> AsyncIterator[list[Finding]]:
    """Notes of names that no record confirms: left by a crash, in nobody's way; the next who wants one gets it."""

    async def checked(key: bytes) -> Finding | None:
        first = await _leftover(link, key, clock)
        return first if first is None else await _leftover(link, key, clock)

    for start_of_key in (_KEY, _EMAIL, _ALIAS):
        async for chunk in scan(link, start_of_key + b"*"):
            for start in range(0, len(chunk), _AT_ONCE):
                found = await asyncio.gather(*map(checked, chunk[start : start + _AT_ONCE]))
                yield [finding for finding in found if finding is not None]


async def _leftover(link: AnyLink, key: bytes, clock: Callable[[], int] | None) -> Finding | None:
    claim = await link.call(b"GET", key)
    owner = _owner(key, claim)
    if owner is None or _is_being_written(key, claim, clock):
        return None
    name, user = key.decode(errors="backslashreplace"), keys.user_keys(owner)
    if key.startswith(_KEY):
        if await link.call(b"HEXISTS", user.record, b"k:" + key.removeprefix(_KEY)):
            return None
    elif key.startswith(_EMAIL):
        text = await link.call(b"HGET", user.doc, b"user_email")
        if (address := _json(text)) and keys.email(str(address)) == key:
            return None
    else:
        doc = cast(list[bytes], await link.call(b"HGETALL", user.doc))
        rows = (_json(value) for field, value in zip(doc[::2], doc[1::2], strict=True) if field.startswith(b"key:"))
        aliases = (row.get("key_alias") for row in rows if isinstance(row, dict))
        if any(keys.alias(str(alias)) == key for alias in aliases if alias is not None):
            return None
    return Finding(owner, f"{name} is a leftover: the record does not confirm it.", is_note=True)


def _is_being_written(key: bytes, claim: Reply, clock: Callable[[], int] | None) -> bool:
    if key.startswith(_KEY) or not isinstance(claim, bytes):
        return False
    since, writers, *_ = claim.split(b" ", 2)
    now_ms = clock() if clock is not None else int(time.time() * 1000)
    return writers != b"0" and abs(now_ms - int(since)) < WRITING_MS


def _owner(key: bytes, reply: Reply) -> str | None:
    """Whose a name is: of an API key the whole text, of a claim what stands behind its three numbers."""
    if not isinstance(reply, bytes):
        return None
    text = reply.decode(errors="backslashreplace")
    if key.startswith(_KEY):
        return text
    parts = text.split(" ", 3)
    return parts[3].partition("\n")[0] if len(parts) == 4 else None


def _json(text: Reply) -> object:
    try:
        return msgspec.json.decode(text) if isinstance(text, bytes) else None
    except msgspec.DecodeError:
        return None
