"""`/team/member_add` and `/team/member_delete`: users join and leave teams, which are names and no more than that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from llmweir.admin.access import Right
from llmweir.admin.errors import AdminError
from llmweir.admin.routes import AdminRoute, Answer, Call, sent
from llmweir.admin.shapes import TeamMembers, user_json
from llmweir.engine.users import User, Users
from llmweir.errors import NotFoundError
from llmweir.record_fields import Email, Name, RequestBody, caseless_email

MAX_MEMBERS = 500


def _null_if_empty(value: object) -> object:
    return None if value == "" else value


def _null_if_zero(value: object) -> object:
    return None if value == 0 and not isinstance(value, bool) else value


_NoBudget = Annotated[
    None, BeforeValidator(_null_if_zero), WithJsonSchema({"anyOf": [{"type": "null"}, {"const": 0}]})
]  # fmt: skip
"""Clients written in Go send an empty text, or a zero, where they mean null."""


class Member(RequestBody):
    """A user, by id or by email; by both where they are the same user's.

    Nobody has rights over a team here, so the only roles to give are those that come with none.
    """

    user_id: Annotated[Name | None, BeforeValidator(_null_if_empty)] = None
    user_email: Annotated[Email | None, BeforeValidator(_null_if_empty)] = None
    role: Literal["user", "internal_user", "internal_user_viewer"] | None = None

    @model_validator(mode="after")
    def _names_a_user(self) -> Self:
        if self.user_id is None and self.user_email is None:
            raise ValueError("A member is named by user_id or user_email.")
        return self


def _shape(value: object) -> str | None:
    if isinstance(value, list):
        return "members"
    return "member" if isinstance(value, Member | Mapping) else None


Members = Annotated[
    Annotated[Member, Tag("member")]
    | Annotated[list[Member], Field(min_length=1, max_length=MAX_MEMBERS), Tag("members")],
    Discriminator(
        _shape,
        custom_error_type="members",
        custom_error_message="A member is an object, or a list of objects.",
    ),
]


class MembersOfTeam(RequestBody):
    """A team and who joins or leaves it: `member`, or one user named beside the team.

    A budget within the team is not kept here; give the user one.
    """

    team_id: Name
    member: Members | None = None
    user_id: Annotated[Name | None, BeforeValidator(_null_if_empty)] = None
    user_email: Annotated[Email | None, BeforeValidator(_null_if_empty)] = None
    max_budget_in_team: _NoBudget = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        beside = self.user_id is not None or self.user_email is not None
        if beside == (self.member is not None):
            raise ValueError("The members are named by member, or by user_id or user_email.")
        return self

    @property
    def members(self) -> list[Member]:
        """Everyone named, whichever way."""
        if self.member is None:
            return [Member(user_id=self.user_id, user_email=self.user_email)]
        return self.member if isinstance(self.member, list) else [self.member]


class TeamRoutes:
    """Members of teams."""

    def __init__(self, users: Users) -> None:
        self._users = users

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """The rows of the table."""
        return (
            AdminRoute(
                method="POST",
                path="/team/member_add",
                right=Right.WRITE_ALL,
                handle=self.add,
                body=MembersOfTeam,
                answer=TeamMembers,
                refuses=(404,),
                summary="Users join a team, all or none; one who is in it already stays",
            ),
            AdminRoute(
                method="POST",
                path="/team/member_delete",
                right=Right.WRITE_ALL,
                handle=self.delete,
                body=MembersOfTeam,
                answer=TeamMembers,
                refuses=(404,),
                summary="Users leave a team, all or none; one who is not in it stays out",
            ),
        )

    async def add(self, call: Call) -> Answer:
        """Adds a team to the teams of users."""
        body = sent(MembersOfTeam, call.body)
        user_ids = await self._ids_of(body.members)
        await self._users.join_team(user_ids, body.team_id)
        return await self._answer(body.team_id, user_ids)

    async def delete(self, call: Call) -> Answer:
        """Takes a team from the teams of users."""
        body = sent(MembersOfTeam, call.body)
        user_ids = await self._ids_of(body.members)
        await self._users.leave_team(user_ids, body.team_id)
        return await self._answer(body.team_id, user_ids)

    async def _answer(self, team_id: str, user_ids: list[str]) -> Answer:
        users = await self._users.get_many(user_ids)
        members = [user_json(user) for user in users if user is not None]
        return Answer({"team_id": team_id, "updated_users": members, "updated_team_memberships": []})

    async def _ids_of(self, members: list[Member]) -> list[str]:
        return list(dict.fromkeys([await self._id_of(member) for member in members]))

    async def _id_of(self, member: Member) -> str:
        if member.user_id is None:
            return await self._id_of_email(member.user_email or "")
        user = await self._users.get(member.user_id)
        if user is None:
            raise NotFoundError("There is no such user.", param="user_id")
        _check_email(member, user)
        return member.user_id

    async def _id_of_email(self, address: str) -> str:
        user_id = await self._users.id_of_email(address)
        if user_id is None:
            raise NotFoundError("There is no user with this email address.", param="user_email")
        return user_id


def _check_email(member: Member, user: User) -> None:
    address = user.record.user_email or ""
    if member.user_email is not None and caseless_email(member.user_email) != caseless_email(address):
        raise AdminError(422, "This user_id and this user_email are not the same user's.", "user_email")
