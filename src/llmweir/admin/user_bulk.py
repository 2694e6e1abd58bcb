"""`/user/bulk_update`: many updates in one call, each with a result of its own."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from llmweir.admin.access import Right
from llmweir.admin.errors import AdminError, as_admin_error
from llmweir.admin.routes import AdminRoute, Answer, Call, sent
from llmweir.admin.shapes import BulkAnswer, UpdateResult, minted_key_json, user_json
from llmweir.admin.user_changes import UserChanges
from llmweir.engine.directory import UserQuery
from llmweir.engine.users import Users
from llmweir.record_fields import RequestBody
from llmweir.records import UserFields, UserUpdate

MAX_UPDATES = 500
_PAGE_SIZE = 100


class SameUpdate(UserFields):
    """What changes for every user alike: anything but what is one user's own."""

    @model_validator(mode="after")
    def _is_nobodys_own(self) -> Self:
        own = self.model_fields_set & {"user_id", "user_email", "key_alias"}
        if own:
            raise ValueError(f"{', '.join(sorted(own))} cannot be the same for all users.")
        if not self.model_fields_set:
            raise ValueError("This names no field to change.")
        return self


class BulkUpdate(RequestBody):
    """Either `users`, an update each, or `all_users` with the `user_updates` that all of them get."""

    users: Annotated[list[UserUpdate], Field(min_length=1, max_length=MAX_UPDATES)] | None = None
    all_users: bool | None = None
    user_updates: SameUpdate | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.users is not None and not self.all_users and self.user_updates is None:
            return self
        if self.users is None and self.all_users and self.user_updates is not None:
            return self
        raise ValueError("A bulk update has either users, or all_users: true and user_updates.")


class BulkRoutes:
    """Updates of many users."""

    def __init__(self, users: Users, changes: UserChanges) -> None:
        self._users = users
        self._changes = changes

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (
            AdminRoute(
                method="POST",
                path="/user/bulk_update",
                right=Right.WRITE_ALL,
                handle=self.bulk_update,
                body=BulkUpdate,
                answer=BulkAnswer,
                summary="Changes up to 500 users, each with a result of its own: one that fails stops no other",
            ),
        )

    async def bulk_update(self, call: Call) -> Answer:
        """Makes the updates one after the other, in the order in which they came."""
        body = sent(BulkUpdate, call.body)
        updates = body.users if body.users is not None else await self._for_all(body.user_updates)
        results = [await self._result(update) for update in updates]
        successful = sum(result["success"] for result in results)
        return Answer(
            {
                "results": results,
                "total_requested": len(results),
                "successful_updates": successful,
                "failed_updates": len(results) - successful,
            }
        )

    async def _for_all(self, same: SameUpdate | None) -> list[UserUpdate]:
        changes = same.model_dump(exclude_unset=True) if same is not None else {}
        user_ids: list[str] = []
        for page in range(1, MAX_UPDATES // _PAGE_SIZE + 1):
            query = UserQuery(page=page, page_size=_PAGE_SIZE, sort_by="user_id", sort_order="asc")
            found = await self._users.page(query)
            if found.total > MAX_UPDATES:
                message = f"There are {found.total} users; one call changes at most {MAX_UPDATES}."
                raise AdminError(400, message, "all_users")
            user_ids += [user.record.user_id for user in found.users]
            if page * _PAGE_SIZE >= found.total:
                break
        return [UserUpdate.model_validate({"user_id": user_id, **changes}) for user_id in dict.fromkeys(user_ids)]

    async def _result(self, update: UserUpdate) -> UpdateResult:
        try:
            user, minted = await self._changes.update(update)
        except Exception as error:
            refused = as_admin_error(error)
            if refused is None:
                raise
            return _failed(update, refused.message)
        done: UpdateResult = {
            "user_id": user.record.user_id,
            "user_email": user.record.user_email,
            "success": True,
            "error": None,
            "updated_user": user_json(user),
        }
        shown_once = minted_key_json(minted) if minted is not None else {}
        return {**done, **shown_once}  # type: ignore[typeddict-item]  # its members are a plain dict's to mypy


def _failed(update: UserUpdate, message: str) -> UpdateResult:
    return {
        "user_id": update.user_id,
        "user_email": update.user_email,
        "success": False,
        "error": message,
        "updated_user": None,
    }
