"""`/user/list`, page by page, and its older name `/user/get_users`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmweir.admin.access import Right
from llmweir.admin.lists import MAX_PAGE, CommaList, pages_of
from llmweir.admin.routes import AdminRoute, Answer, Call, Query, sent
from llmweir.admin.shapes import UserList, listed_user_json
from llmweir.engine.directory import SortField, UserQuery
from llmweir.engine.users import Users
from llmweir.record_fields import Name, UserRole

MAX_PAGE_SIZE = 100


class ListUsers(Query):
    """Which users to list, in which order, and which page of them."""

    page: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 1
    page_size: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)] = 25
    role: UserRole | None = None
    user_ids: Annotated[CommaList | None, Field(description="Only these, separated by commas.")] = None
    user_email: Annotated[Name | None, Field(description="A part of the address, in any case.")] = None
    search: Annotated[Name | None, Field(description="A part of the id, the email or the alias, in any case.")] = None
    team: Annotated[Name | None, Field(description="Only the members of this team.")] = None
    sort_by: SortField = "created_at"
    sort_order: Literal["asc", "desc"] = "desc"

    def asked(self) -> UserQuery:
        """The question as the directory takes it."""
        return UserQuery(
            page=self.page,
            page_size=self.page_size,
            role=self.role,
            user_ids=tuple(self.user_ids) if self.user_ids is not None else None,
            user_email=self.user_email,
            search=self.search,
            team=self.team,
            sort_by=self.sort_by,
            sort_order=self.sort_order,
        )


class UserListRoutes:
    """Lists of users, for those who may read them all."""

    def __init__(self, users: Users) -> None:
        self._users = users

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (
            self._row("/user/list", "The users, page by page"),
            self._row("/user/get_users", "The same as /user/list"),
        )

    async def page(self, call: Call) -> Answer:
        """A page of users; one past the end is empty."""
        query = sent(ListUsers, call.query)
        found = await self._users.page(query.asked())
        return Answer(
            {
                "users": [listed_user_json(user) for user in found.users],
                "total": found.total,
                "page": query.page,
                "page_size": query.page_size,
                "total_pages": pages_of(found.total, query.page_size),
            }
        )

    def _row(self, path: str, summary: str) -> AdminRoute:
        return AdminRoute(
            method="GET",
            path=path,
            right=Right.READ_ALL,
            handle=self.page,
            query=ListUsers,
            answer=UserList,
            summary=summary,
        )
