"""Proves the books of a store: walks all users and holds each number against what it must agree with.

A user's own numbers are read by one script call, so they are of one moment. What lies in other slots, claims, the way
from an API key to its user, the directories, is read after that; where it does not agree both are read once more before
it is called wrong, for somebody may have written in between. Nothing is ever written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec

from llmweir.engine import keys, scripts
from llmweir.engine.any_link import AnyLink
from llmweir.engine.books_claims import Elsewhere, Unlisted, leftovers
from llmweir.engine.books_page import DAYS_KEPT, Page
from llmweir.engine.books_reader import read_page
from llmweir.engine.books_rules import Finding, judge
from llmweir.engine.books_walk import listed_ids, user_count, walked_ids
from llmweir.engine.wire import ReplyError

MOST_FINDINGS = 1_000
"""How many findings, and how many notes, are kept in words; all are counted."""

_AT_ONCE = 50


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit has found: how much there is, and all that is not as it must be.

    `in_flight` counts the leases that have not expired. `findings` mean that the books are wrong; `notes` may have a
    good reason. `unlisted_*` are in no list, for want of a place in the directories; filing them again mends that.
    """

    users: int
    accounts: int
    leases: int
    in_flight: int
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    finding_count: int
    note_count: int
    unlisted_users: tuple[str, ...]
    unlisted_keys: tuple[str, ...]

    @property
    def balanced(self) -> bool:
        """Whether nothing is wrong."""
        return self.finding_count == 0

    @property
    def exact(self) -> bool:
        """Whether nothing is wrong and there is no note: every nano of every day is in the spend."""
        return self.finding_count == 0 and self.note_count == 0


async def audit(
    link: AnyLink,
    *,
    user_ids: Iterable[str] | None = None,
    lease_ttl_ms: int,
    clock: Callable[[], int] | None = None,
    progressed: Callable[[int, int], None] | None = None,
) -> Audit:
    """Audits some users, or all there are; it asks for a few at a time, and keeps none of them.

    `lease_ttl_ms` is the life of a lease, `clock` gives the time in ms instead of the server's (for tests),
    `progressed` is told how many users are done, and of how many. Raises StoreUnavailableError, and ReplyError where
    Redis does not let us look.
    """
    auditor = _Auditor(link, lease_ttl_ms, clock)
    if user_ids is not None:
        wanted = list(dict.fromkeys(user_ids))
        for start in range(0, len(wanted), _AT_ONCE):
            await auditor.look_at(wanted[start : start + _AT_ONCE], by_name=True)
            _tell(progressed, min(start + _AT_ONCE, len(wanted)), len(wanted))
        return auditor.audit()
    done, total = 0, await user_count(link)
    async for some in _few_at_a_time(listed_ids(link)):
        await auditor.look_at(some)
        done += len(some)
        _tell(progressed, done, max(done, total))
    async for some in _few_at_a_time(walked_ids(link)):
        await auditor.look_at(some)
    async for findings in leftovers(link, clock):
        auditor.note(findings)
    return auditor.audit()


class _Auditor:
    """Looks at users, a few at a time, and adds up what it sees."""

    def __init__(self, link: AnyLink, lease_ttl_ms: int, clock: Callable[[], int] | None) -> None:
        self._link = link
        self._lease_ttl_ms = lease_ttl_ms
        self._clock = clock
        self._script = scripts.load("books")
        self._elsewhere = Elsewhere(link)
        self._users = self._accounts = self._leases = self._in_flight = 0
        self._findings: list[Finding] = []
        self._notes: list[Finding] = []
        self._finding_count = self._note_count = 0
        self._unlisted_users: list[str] = []
        self._unlisted_keys: list[str] = []

    def audit(self) -> Audit:
        """All that was seen so far."""
        return Audit(
            users=self._users,
            accounts=self._accounts,
            leases=self._leases,
            in_flight=self._in_flight,
            findings=tuple(self._findings),
            notes=tuple(self._notes),
            finding_count=self._finding_count,
            note_count=self._note_count,
            unlisted_users=tuple(self._unlisted_users),
            unlisted_keys=tuple(self._unlisted_keys),
        )

    async def look_at(self, user_ids: list[str], *, by_name: bool = False) -> None:
        """Audits these users; those asked for `by_name` should exist."""
        pages = await self._pages(user_ids)
        findings, unlisted = await self._elsewhere.compare(pages)
        if findings or unlisted:
            findings, unlisted = await self._look_again(findings, unlisted)
        self.note(findings)
        self._unlisted_users += unlisted.users
        self._unlisted_keys += unlisted.keys
        for page in pages:
            self._add_up(page)
            self.note(judge(page, self._lease_ttl_ms))
            if not page.exists and not page.left_behind and by_name:
                self.note([Finding(page.user_id, "There is no such user.")])

    def note(self, findings: Iterable[Finding]) -> None:
        """Takes findings down."""
        for finding in findings:
            kept = self._notes if finding.is_note else self._findings
            if len(kept) < MOST_FINDINGS:
                kept.append(finding)
            self._note_count += finding.is_note
            self._finding_count += not finding.is_note

    async def _pages(self, user_ids: Iterable[str]) -> list[Page]:
        read = await asyncio.gather(*map(self._page, user_ids))
        return [page for page in read if page is not None]

    async def _page(self, user_id: str) -> Page | None:
        user = keys.user_keys(user_id)
        now = self._clock() if self._clock is not None else b""
        try:
            reply = await self._link.run(
                self._script, user.record, user.doc, user.use, user.leases, user.window, now, DAYS_KEPT, keys=5
            )
        except ReplyError as error:
            if "user_script" not in str(error) or "NOPERM" in str(error) or "ACL" in str(error):
                raise
            self._users += 1
            self.note([Finding(user_id, f"The user's data cannot be read; Redis says: {error}")])
            return None
        return read_page(user_id, reply)

    async def _look_again(self, first: list[Finding], unlisted: Unlisted) -> tuple[list[Finding], Unlisted]:
        """What is still so when users are read afresh."""
        doubtful = dict.fromkeys([*(finding.user_id for finding in first), *unlisted.owners])
        second, still_unlisted = await self._elsewhere.compare(await self._pages(doubtful))
        return [finding for finding in second if finding in first], still_unlisted

    def _add_up(self, page: Page) -> None:
        self._users += page.exists
        self._accounts += len(page.accounts)
        self._leases += len(page.leases)
        self._in_flight += sum(lease.expires_at_ms > page.now_ms for lease in page.leases)


async def _few_at_a_time(ids: AsyncIterator[str]) -> AsyncIterator[list[str]]:
    some: list[str] = []
    async for user_id in ids:
        some.append(user_id)
        if len(some) == _AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _tell(progressed: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progressed is not None:
        progressed(done, total)
