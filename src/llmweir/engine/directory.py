"""The directory of users: a page of them in any order, narrowed by role, team or text, and how many there are.

What one place of the catalogue answers costs the same with a hundred users as with a million: all users, those of a
role or of a team by creation; all by id, email, alias or role. A part of a text, several filters at once, or a filter
in another order than by creation walk the rows of the smallest place that holds all answers, a thousand a command; an
order by spend also asks the users' own accounts, all that match.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, TypeAlias, get_args

import msgspec

from llmweir.engine import keys
from llmweir.engine.any_link import AnyLink
from llmweir.engine.catalogue import CHUNK, Catalogue, Lines, Order
from llmweir.record_fields import UserRole

SortField: TypeAlias = Literal["created_at", "user_id", "user_email", "user_alias", "user_role", "spend"]

_MOST_SORTED_HERE = 10_000
_TEXT_OF: dict[SortField, str] = {"user_id": "id", "user_email": "email", "user_alias": "alias"}
_EVERYBODY = "c"
_EMAIL, _ALIAS = (f"l{keys.text_place(field)}\t" for field in ("email", "alias"))
_EMAIL_LINE, _ALIAS_LINE, _ROLE_LINE = 4, 5, 2


class UserEntry(msgspec.Struct, frozen=True):
    """What of a user's record the directory files."""

    user_id: str
    email: str | None
    alias: str | None
    role: str
    teams: tuple[str, ...]
    created_at_ms: int


class UserQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which users, in which order, and which page of them.

    `user_email` is a part of the address, `search` of the id, the email or the alias, both in any case. Texts are
    ordered without regard to case; users without one come last, and first where the order is "desc".
    """

    page: int = 1
    page_size: int = 25
    role: str | None = None
    user_ids: tuple[str, ...] | None = None
    user_email: str | None = None
    search: str | None = None
    team: str | None = None
    sort_by: SortField = "created_at"
    sort_order: Literal["asc", "desc"] = "desc"


class Directory:
    """The users of one store.

    `entries` reads the records of many ids afresh, in their order, None where there is none; `spends` gives what each
    of many users, never more than a thousand, has spent in nano-dollars. `clock` gives the time in ms instead of the
    server's clock (for tests).
    """

    def __init__(
        self,
        link: AnyLink,
        entries: Callable[[Sequence[str]], Awaitable[list[UserEntry | None]]],
        spends: Callable[[Sequence[str]], Awaitable[list[int]]],
        *,
        clock: Callable[[], int] | None = None,
    ) -> None:
        async def truth(ids: Sequence[str]) -> list[Lines]:
            return [_lines(entry) if entry is not None else "" for entry in await entries(ids)] if ids else []

        self._keys = keys.catalogue("users")
        self._catalogue = Catalogue(link, self._keys, truth, clock=clock)
        self._spends = spends

    def writing(self, user_id: str) -> AbstractAsyncContextManager[None]:
        """Wraps whatever makes a user, changes what `UserEntry` has of one, or deletes one: `async with`."""
        return self._catalogue.writing(user_id)

    async def file_again(self, user_ids: Sequence[str]) -> None:
        """Files users as their records are, whatever the directory had: for what it has lost or never had."""
        await self._catalogue.file_again(user_ids)

    async def user_ids(self, query: UserQuery) -> tuple[list[str], int]:
        """The ids of a page, and how many users the query finds on all pages."""
        found, total = await self._catalogue.listed(lambda: self._find(query))
        return list(found), total

    async def _find(self, query: UserQuery) -> tuple[list[str], int]:
        wanted = _wanted(query)
        group = self._keys.place(wanted.group.removeprefix("c"))
        if query.user_ids is not None:
            return await self._ranked(query, wanted, self._rows_of(list(dict.fromkeys(query.user_ids))))
        if query.sort_by == "spend" or (wanted.lines and query.sort_by != "created_at" and await self._is_small(group)):
            return await self._ranked(query, wanted, self._catalogue.walk(Order((group,), is_reversed=False)))
        order, served = self._order(query, wanted)
        start, stop = _window(query)
        if wanted.is_met_by(served):
            return await self._catalogue.page(order, start, stop)
        found = {entry_id: None async for chunk in self._catalogue.walk(order) for entry_id, _ in wanted.among(chunk)}
        return list(found)[start:stop], len(found)

    async def _is_small(self, place: bytes) -> bool:
        return (await self._catalogue.count([place]))[0] <= _MOST_SORTED_HERE

    def _order(self, query: UserQuery, wanted: _Wanted) -> tuple[Order, str]:
        """The sorted sets to read, and the group that they hold nobody outside of."""
        is_reversed = query.sort_order == "desc"
        if query.sort_by == "user_role":
            roles = sorted(get_args(UserRole), reverse=is_reversed)
            places = [keys.role_place(role) for role in roles]
            return Order(tuple(self._keys.place(place) for place in places), is_reversed), _EVERYBODY
        if query.sort_by in _TEXT_OF:
            place = self._keys.place(keys.text_place(_TEXT_OF[query.sort_by]))
            return Order((place,), is_reversed), _EVERYBODY
        return Order((self._keys.place(wanted.group.removeprefix("c")),), is_reversed), wanted.group

    async def _ranked(
        self, query: UserQuery, wanted: _Wanted, chunks: AsyncIterator[list[tuple[str, Lines]]]
    ) -> tuple[list[str], int]:
        """Puts what is wanted in order chunk by chunk, so that the event loop never waits for one long sort."""
        start, stop = _window(query)
        first: list[tuple[tuple[str, int], str]] = []
        seen: set[str] = set()
        async for chunk in chunks:
            rows = {entry_id: fields for entry_id, fields in wanted.among(chunk) if entry_id not in seen}
            ranks = await self._ranks(query.sort_by, rows) if rows else []
            first = sorted([*first, *zip(ranks, rows, strict=True)], reverse=query.sort_order == "desc")[:stop]
            seen.update(rows)
        return [entry_id for _, entry_id in first[start:]], len(seen)

    async def _ranks(self, sort_by: SortField, rows: dict[str, list[str]]) -> list[tuple[str, int]]:
        """What each row is ordered by before its id."""
        if sort_by == "spend":
            return [("", nanos) for nanos in await self._spends(list(rows))]
        return [_rank(sort_by, fields) for fields in rows.values()]

    async def _rows_of(self, user_ids: Sequence[str]) -> AsyncIterator[list[tuple[str, Lines]]]:
        for start in range(0, len(user_ids), CHUNK):
            ids = user_ids[start : start + CHUNK]
            yield list(zip(ids, await self._catalogue.rows(ids), strict=True))


class _Wanted(msgspec.Struct, frozen=True):
    """What a row must have: these lines, this part of an email, this part of any text; casefolded, "" = anything."""

    lines: frozenset[str]
    group: str
    email: str
    search: str

    def is_met_by(self, group: str) -> bool:
        """Whether everybody in a group is wanted."""
        return not self.email and not self.search and self.lines <= {group}

    def among(self, chunk: list[tuple[str, Lines]]) -> Iterator[tuple[str, list[str]]]:
        """What of a chunk is wanted, each with its lines."""
        for user_id, lines in chunk:
            fields = lines.split("\n")
            if self._is_met_by_row(user_id, fields):
                yield user_id, fields

    def _is_met_by_row(self, user_id: str, fields: list[str]) -> bool:
        if len(fields) <= _ALIAS_LINE or not self.lines.issubset(fields):
            return False
        email = fields[_EMAIL_LINE][len(_EMAIL) + 1 :]
        if self.email not in email:
            return False
        return (
            self.search in email
            or self.search in user_id.casefold()
            or (self.search in fields[_ALIAS_LINE][len(_ALIAS) + 1 :])
        )


def _wanted(query: UserQuery) -> _Wanted:
    role = [f"c{keys.role_place(query.role)}"] if query.role is not None else []
    team = [f"c{keys.team_place(query.team)}"] if query.team is not None else []
    return _Wanted(
        frozenset(role + team),
        [*team, *role, _EVERYBODY][0],
        (query.user_email or "").casefold(),
        (query.search or "").casefold(),
    )


def _lines(entry: UserEntry) -> Lines:
    """Spells where a user is filed; `_Wanted` and `_rank` know the order of the lines."""
    return "".join(
        f"{line}\n"
        for line in (
            str(entry.created_at_ms),
            _EVERYBODY,
            f"c{keys.role_place(entry.role)}",
            f"l{keys.text_place('id')}\t",
            f"{_EMAIL}{_text(entry.email)}",
            f"{_ALIAS}{_text(entry.alias)}",
            *(f"c{keys.team_place(team)}" for team in dict.fromkeys(entry.teams)),
        )
    )


def _text(text: str | None) -> str:
    """A text as it is ordered: without regard to case, and last where there is none."""
    return "2" if text is None else f"1{text.casefold()}"


def _rank(sort_by: SortField, fields: list[str]) -> tuple[str, int]:
    created_at_ms = int(fields[0])
    match sort_by:
        case "user_email":
            return fields[_EMAIL_LINE], 0
        case "user_alias":
            return fields[_ALIAS_LINE], 0
        case "user_role":
            return fields[_ROLE_LINE], created_at_ms
        case "user_id":
            return "", 0
        case _:
            return "", created_at_ms


def _window(query: UserQuery) -> tuple[int, int]:
    start = (query.page - 1) * query.page_size
    return start, start + query.page_size
