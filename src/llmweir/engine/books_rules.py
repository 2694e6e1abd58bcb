"""What must be true of one user's page of the books, each rule on its own; a page is judged as it lies there.

What is due and has not been carried out, an expired lease or the end of a period, breaks no rule: until the next touch
of the user the accounts, the leases and the rows are all as they were before, and agree with each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from llmweir import durations
from llmweir.durations import Duration
from llmweir.engine.books_page import DAY_MS, DAYS_KEPT, Account, Page

_SPAN_S = 60
_MONTH_MS = 31 * DAY_MS
_KEY = re.compile(r"\d+ [01] (\d+)( -?\d+ -?\d+ -?\d+ -?\d+ \S+)?")

Value: TypeAlias = "int | str | None"


class Finding(msgspec.Struct, frozen=True):
    """Something in the books that is not as it must be: `what` says it in a plain sentence.

    `is_note`: there may be a good reason for it, so that alone it does not mean that the books are wrong. `user_id` is
    "" where it is about no user.
    """

    user_id: str
    what: str
    expected: Value = None
    found: Value = None
    is_note: bool = False


def judge(page: Page, lease_ttl_ms: int) -> Iterator[Finding]:
    """Gives all findings of one user's page, but for what lies in other slots of Redis."""
    for name in page.left_behind:
        yield Finding(page.user_id, f"There is {name}, but no record that it belongs to.")
    for name in page.unreadable:
        yield Finding(page.user_id, f"{name[0].upper()}{name[1:]} cannot be read.")
    if page.exists and not page.unreadable:
        yield from _spend(page)
        for name, account in page.accounts.items():
            yield from _in_flight(page, name, account)
            yield from _window(page, name, account)
        yield from _leases(page, lease_ttl_ms)
        yield from _days(page)
        yield from _keys(page)


def _spend(page: Page) -> Iterator[Finding]:
    own = page.accounts.get("u")
    models = sum(use.spent_nanos for use in page.models.values())
    expected, found = models + page.numbers.get("j", 0), own.spent_nanos if own is not None else 0
    if found != expected:
        yield Finding(
            page.user_id,
            f"The spend is {found} nanos, but its models and what was set by hand come to {expected}.",
            expected,
            found,
        )
    for model, use in page.models.items():
        if use.spent_nanos < 0:
            yield _below_zero(page, f"what was spent of the model {model}", use.spent_nanos)


def _in_flight(page: Page, name: str, account: Account) -> Iterator[Finding]:
    naming = [lease for lease in page.leases if name in lease.periods]
    held = sum(lease.nanos for lease in naming if lease.periods[name] == account.period)
    if account.running != len(naming):
        yield Finding(
            page.user_id,
            f"{_named(name)} counts {account.running} in flight, but the leases that name it are {len(naming)}.",
            len(naming),
            account.running,
        )
    if account.held_nanos != held:
        yield Finding(
            page.user_id,
            f"{_named(name)} holds {account.held_nanos} nanos, but its leases hold {held}.",
            held,
            account.held_nanos,
        )


def _window(page: Page, name: str, account: Account) -> Iterator[Finding]:
    if page.now_ms // 1000 - account.second > _SPAN_S:
        return  # all of it has left the minute
    ring, second = page.rings.get(name, {}), account.second
    parts = (
        ("requests", account.requests, account.slot_requests, 0),
        ("tokens", account.tokens, account.slot_tokens, _SPAN_S + 1),
    )
    for noun, total, slot, offset in parts:
        # The field of the running second itself is of 61 seconds ago: that has left, and is not yet overwritten.
        slots = sum(ring.get(one % (_SPAN_S + 1) + offset, 0) for one in range(second - _SPAN_S, second))
        if total != slot + slots:
            yield Finding(
                page.user_id,
                f"The window of {_named(name, starts=False)} has {total} {noun}, but its seconds have {slot + slots}.",
                slot + slots,
                total,
            )
        if total < 0 or slot < 0:
            yield _below_zero(page, f"the {noun} in the window of {_named(name, starts=False)}", min(total, slot))


def _leases(page: Page, lease_ttl_ms: int) -> Iterator[Finding]:
    if not page.leases:
        return
    first, due = min(lease.expires_at_ms for lease in page.leases), page.numbers.get("x")
    if due is None:
        yield Finding(page.user_id, "There are leases, but no time at which to look whether they have expired.", first)
    elif due > first:
        yield Finding(
            page.user_id, f"Expired leases are looked for at {due} ms, but the first expires at {first}.", first, due
        )
    late = sum(page.now_ms > lease.expires_at_ms + lease_ttl_ms for lease in page.leases)
    if late:
        yield Finding(
            page.user_id,
            f"Stale leases: {late}. They are charged as held when the user is next touched.",
            0,
            late,
            is_note=True,
        )


def _days(page: Page) -> Iterator[Finding]:
    for day in page.days:
        for model, row in day.doubtful.items():
            use = page.models.get(model)
            beside = use.row if use is not None and use.day == day.day else (0,) * len(row)
            least = min(one + other for one, other in zip(row, beside, strict=True))
            if least < 0:
                yield _below_zero(page, f"a number in the row of the model {model} on day {day.day}", least)
    spent, first_day = sum(use.spent_nanos for use in page.models.values()), _first_day(page)
    if first_day < page.today - DAYS_KEPT:
        return
    kept = sum(use.nanos for use in page.models.values() if use.day >= first_day)
    booked = kept + sum(day.nanos for day in page.days if day.day >= first_day)
    if booked < spent:
        yield Finding(
            page.user_id, f"The rows of the days come to {booked} nanos, less than the {spent} spent.", spent, booked
        )
    elif booked > spent and page.period is None:
        yield Finding(
            page.user_id,
            f"The rows of the days come to {booked} nanos, more than the {spent} spent: "
            "there was a budget period before, or another user of this id, or something was charged to the days alone.",
            spent,
            booked,
            is_note=True,
        )


def _first_day(page: Page) -> int:
    """The first day on which something of what was spent in the running period can have been used."""
    created, own = page.created_at_ms // DAY_MS, page.accounts.get("u")
    if page.period is None or own is None:
        return created
    text, anchor_ms = page.period
    months = int(text[:-2]) if text.endswith("mo") else 0
    duration = Duration(text, 0 if months else int(text), months)
    if own.ends_at_ms <= durations.period_end_ms(duration, anchor_ms, anchor_ms):
        return created  # a first period begins with what was spent before it
    return max(created, (own.ends_at_ms - (duration.length_ms or months * _MONTH_MS)) // DAY_MS)


def _keys(page: Page) -> Iterator[Finding]:
    accounts: set[str] = set()
    for key_hash, text in page.keys.items():
        parts = _KEY.fullmatch(text)
        if parts is None:
            yield Finding(page.user_id, f"The API key {key_hash} cannot be read in the record.")
            continue
        account = f"{'ks' if parts[2] is None else 'k'}:{parts[1]}"
        accounts.add(account)
        if account not in page.accounts and account not in page.numbers:
            yield Finding(page.user_id, f"What the API key {key_hash} has used is missing, field {account}.", account)
        if key_hash not in page.key_rows:
            yield Finding(page.user_id, f"The API key {key_hash} has no row in the doc.")
    for key_hash in page.key_rows.keys() - page.keys.keys():
        yield Finding(page.user_id, f"The doc has a row of the API key {key_hash}, which the record does not have.")
    for name in sorted({*page.accounts, *page.numbers} - accounts):
        if name.startswith(("k:", "ks:")):
            yield Finding(page.user_id, f"There is what an API key has used, field {name}, but no such key.")


def _below_zero(page: Page, subject: str, found: int) -> Finding:
    return Finding(page.user_id, f"{subject[0].upper()}{subject[1:]} is below 0: {found}.", 0, found)


def _named(account: str, *, starts: bool = True) -> str:
    article = "The" if starts else "the"
    if account == "u":
        return f"{article} user's account"
    return f"{article} account of {'API key' if account.startswith('k:') else 'the model limit'} {account[2:]}"
