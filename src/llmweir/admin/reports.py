"""The routes of reports: where the limits of a user stand now, and what was used day by day."""

from __future__ import annotations

import asyncio
import re
from datetime import date
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from llmweir.admin.access import Right
from llmweir.admin.activity import EPOCH, Activity, ActivityPage
from llmweir.admin.errors import AdminError
from llmweir.admin.lists import MAX_PAGE
from llmweir.admin.routes import AdminRoute, Answer, Call, Query, sent
from llmweir.admin.usage_shapes import Usage, usage_json
from llmweir.engine.directory import UserQuery
from llmweir.engine.users import Users
from llmweir.record_fields import Name

MAX_USER_DAYS = 150_000
"""How many days of users one report adds up: those of 5,000 users for a month."""

_DAY_MS = 86_400_000
_KEPT_DAYS = 400
_A_MONTH_DAYS = 30
_CHUNK_USERS = 100
_WRITTEN = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _day(value: object) -> object:
    if not isinstance(value, str) or not _WRITTEN.fullmatch(value):
        raise ValueError("A date is written YYYY-MM-DD.")
    return date.fromisoformat(value)


Day = Annotated[date, BeforeValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]


class WhoseUsage(Query):
    """The user that a report is about; the caller's own where none is named."""

    user_id: Name | None = None


class ActivitySearch(WhoseUsage):
    """UTC days from `start_date` to `end_date`, both among them; pages are of days."""

    start_date: Day
    end_date: Day
    model: Name | None = None
    page: int = Field(default=1, ge=1, le=MAX_PAGE)
    page_size: int = Field(default=50, ge=1, le=1_000)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end_date < self.start_date:
            raise ValueError("The end_date comes before the start_date.")
        return self


class ReportRoutes:
    """Reports about one user, or about all."""

    def __init__(self, users: Users) -> None:
        self._users = users

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (
            AdminRoute(
                method="GET",
                path="/user/usage",
                right=Right.OWN_USAGE,
                handle=self.usage,
                query=WhoseUsage,
                answer=Usage,
                refuses=(400, 404),
                summary="Where each limit of a user stands now; reading it counts nothing",
            ),
            AdminRoute(
                method="GET",
                path="/user/daily/activity",
                right=Right.OWN_USAGE,
                handle=self.activity,
                query=ActivitySearch,
                answer=ActivityPage,
                summary="What was used day by day and model by model, by a user, or by all of them",
            ),
        )

    async def usage(self, call: Call) -> Answer:
        """The limits of a user, and which of them is nearest to its end."""
        identity = call.identity
        user_id = identity.whose(sent(WhoseUsage, call.query).user_id)
        presented = identity.key.token if identity.key is not None and user_id == identity.user_id else None
        return Answer(usage_json(user_id, await self._users.usage(user_id), presented))

    async def activity(self, call: Call) -> Answer:
        """The days on which a user used something; of all users where somebody who may read them names none."""
        search = sent(ActivitySearch, call.query)
        activity = Activity(search.model)
        days = self._kept(search)
        if search.user_id is None and call.identity.reads_all:
            await self._add_all_users(activity, days)
        else:
            await self._add_users(activity, [call.identity.whose(search.user_id)], days)
        return Answer(activity.page(search.page, search.page_size))

    def _kept(self, search: ActivitySearch) -> range:
        """The days asked for that can have a row: rows are kept for 400 days."""
        today = self._users.data.now_ms() // _DAY_MS
        first, last = search.start_date.toordinal() - EPOCH, search.end_date.toordinal() - EPOCH
        return range(max(first, today - _KEPT_DAYS), min(last, today + 1) + 1)

    async def _add_users(self, activity: Activity, user_ids: list[str], days: range) -> None:
        if days:
            found = await asyncio.gather(*(self._users.days(user_id, days[0], days[-1]) for user_id in user_ids))
            for rows in found:
                activity.add(rows)

    async def _add_all_users(self, activity: Activity, days: range) -> None:
        page, seen, total = 1, 0, 1
        while days and seen < total:
            query = UserQuery(page=page, page_size=_CHUNK_USERS, sort_by="created_at", sort_order="asc")
            found = await self._users.page(query)
            page, seen, total = page + 1, seen + _CHUNK_USERS, found.total
            _check_size(total, days)
            await self._add_users(activity, [user.record.user_id for user in found.users], days)


def _check_size(users: int, days: range) -> None:
    if users * max(len(days), _A_MONTH_DAYS) > MAX_USER_DAYS:
        message = f"There are {users} users, too many to add up so many days of; name a user_id, or fewer days."
        raise AdminError(422, message, "user_id")
