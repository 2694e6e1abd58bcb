"""The routes of users: make, change, read, block and delete them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmweir.admin.access import Right
from llmweir.admin.routes import AdminRoute, Answer, Call, Query, sent
from llmweir.admin.shapes import (
    BlockedUsers,
    NewUserAnswer,
    RoleInfo,
    UpdateAnswer,
    UserInfo,
    UserRow,
    minted_key_json,
    user_info_json,
    user_json,
)
from llmweir.admin.user_changes import UserChanges
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.users import User, Users
from llmweir.errors import NotFoundError
from llmweir.record_fields import Name, RequestBody, UserRole
from llmweir.records import NewUser, UserFields, UserUpdate

MAX_IDS = 500
_DEPRECATED_SINCE_S = 1767225600  # 2026-01-01
_ROLES: dict[UserRole, RoleInfo] = {
    "proxy_admin": {"ui_label": "Admin", "description": "Reads and writes every user and key"},
    "proxy_admin_viewer": {"ui_label": "Admin (read only)", "description": "Reads every user and key"},
    "internal_user": {"ui_label": "User", "description": "Reads their own record, makes and deletes their own keys"},
    "internal_user_viewer": {"ui_label": "User (read only)", "description": "Reads their own record; calls no model"},
    "team": {"ui_label": "Team", "description": "Calls models and reads their own usage"},
    "customer": {"ui_label": "Customer", "description": "Calls models and reads their own usage"},
}


class UserIds(RequestBody):
    """The users that a call is about."""

    user_ids: Annotated[list[Name], Field(min_length=1, max_length=MAX_IDS)]


class AboutUser(Query):
    """The user that a call is about; the caller's own where none is named."""

    user_id: Name | None = None


class UserRoutes:
    """Users, one call a user or a list of ids."""

    def __init__(self, users: Users, keys: ApiKeys, changes: UserChanges) -> None:
        self._users = users
        self._keys = keys
        self._changes = changes

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (*self._writing(), *self._reading())

    def _writing(self) -> tuple[AdminRoute, ...]:
        return (
            AdminRoute(
                method="POST",
                path="/user/new",
                right=Right.WRITE_ALL,
                handle=self.new,
                body=NewUser,
                answer=NewUserAnswer,
                refuses=(409, 502),
                summary="Makes a user, and a key unless told not to",
            ),
            AdminRoute(
                method="POST",
                path="/user/update",
                right=Right.WRITE_ALL,
                handle=self.update,
                body=UserUpdate,
                answer=UpdateAnswer,
                refuses=(404, 409, 502),
                summary="Changes the fields that are sent, all or none; null clears one",
            ),
            AdminRoute(
                method="POST",
                path="/user/delete",
                right=Right.WRITE_ALL,
                handle=self.delete,
                body=UserIds,
                answer=int,
                refuses=(404,),
                summary="Deletes users and their keys, all or none; answers how many",
            ),
            AdminRoute(
                method="POST",
                path="/user/block",
                right=Right.WRITE_ALL,
                handle=self.block,
                body=UserIds,
                answer=BlockedUsers,
                refuses=(404,),
                summary="Blocks users from their next request on, all or none",
            ),
            AdminRoute(
                method="POST",
                path="/user/unblock",
                right=Right.WRITE_ALL,
                handle=self.unblock,
                body=UserIds,
                answer=BlockedUsers,
                refuses=(404,),
                summary="Lets blocked users in again, all or none",
            ),
        )

    def _reading(self) -> tuple[AdminRoute, ...]:
        return (
            AdminRoute(
                method="GET",
                path="/user/info",
                right=Right.OWN_READ,
                handle=self.info,
                query=AboutUser,
                answer=UserInfo,
                refuses=(404,),
                summary="A record with its live usage and its keys; your own where no user_id is named",
            ),
            AdminRoute(
                method="GET",
                path="/v2/user/info",
                right=Right.OWN_READ,
                handle=self.flat_info,
                query=AboutUser,
                answer=UserRow,
                refuses=(404,),
                summary="A record, flat; your own where no user_id is named",
            ),
            AdminRoute(
                method="GET",
                path="/user/available_roles",
                right=Right.OWN_READ,
                handle=self.roles,
                answer=dict[str, RoleInfo],
                summary="The roles that a user may have",
            ),
        )

    async def new(self, call: Call) -> Answer:
        """Makes a user; the answer shows the key once, or "" where none was made."""
        body = sent(NewUser, call.body)
        user, minted = await self._changes.create(body)
        key = minted_key_json(minted) if minted is not None else dict.fromkeys(("key_name", "token_id", "expires"))
        return Answer({**user_json(user), "key": "", **key}, headers=_deprecation(body))

    async def update(self, call: Call) -> Answer:
        """Changes a user, and shows the key once where one was made."""
        body = sent(UserUpdate, call.body)
        user, minted = await self._changes.update(body)
        key = minted_key_json(minted) if minted is not None else {}
        return Answer(
            {"user_id": user.record.user_id, "data": user_json(user), **key},
            headers=_deprecation(body),
        )

    async def delete(self, call: Call) -> Answer:
        """Deletes users and answers their number, each counted once."""
        user_ids = _unique(sent(UserIds, call.body).user_ids)
        found = await self._users.get_many(user_ids)
        await self._users.delete(user_ids)
        await self._keys.forget([key for user in found if user is not None for key in user.keys])
        return Answer(len(user_ids))

    async def block(self, call: Call) -> Answer:
        """Blocks users."""
        return await self._set_blocked(call, blocked=True)

    async def unblock(self, call: Call) -> Answer:
        """Unblocks users; of those named none is blocked then."""
        return await self._set_blocked(call, blocked=False)

    async def info(self, call: Call) -> Answer:
        """A record, its live usage and its keys."""
        return Answer(user_info_json(await self._meant(call)))

    async def flat_info(self, call: Call) -> Answer:
        """A record, flat."""
        return Answer(user_json(await self._meant(call)))

    async def roles(self, _: Call) -> Answer:
        """The roles and what each may do."""
        return Answer(_ROLES)

    async def _set_blocked(self, call: Call, *, blocked: bool) -> Answer:
        user_ids = _unique(sent(UserIds, call.body).user_ids)
        await self._users.set_blocked(user_ids, blocked)
        return Answer({"blocked_users": user_ids if blocked else []})

    async def _meant(self, call: Call) -> User:
        user_id = call.identity.whose(sent(AboutUser, call.query).user_id)
        user = await self._users.get(user_id)
        if user is None:
            raise NotFoundError("There is no such user.", param="user_id")
        return user


def _unique(ids: list[str]) -> list[str]:
    return list(dict.fromkeys(ids))


def _deprecation(body: UserFields) -> dict[str, str]:
    """The header that says that a deprecated field was sent (RFC 9745)."""
    deprecated = body.model_fields_set & {"config", "team_id"}
    return {"deprecation": f"@{_DEPRECATED_SINCE_S}"} if deprecated else {}
