"""The shapes in which the admin API answers, as clients written for the LiteLLM proxy expect them."""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

from llmweir.admin.key_shapes import KeyRow, key_row
from llmweir.engine.api_keys import MintedKey
from llmweir.engine.users import User
from llmweir.record_fields import UserRole, iso_time
from llmweir.records import as_json


class UserRow(TypedDict):
    """A record as it stands, flat."""

    user_id: str
    user_email: str | None
    user_alias: str | None
    user_role: UserRole
    teams: list[str]
    max_budget: float | None
    budget_duration: str | None
    budget_reset_at: str | None
    soft_budget: float | None
    spend: float
    reserved: float
    model_spend: dict[str, float]
    models: list[str]
    tpm_limit: int | None
    rpm_limit: int | None
    max_parallel_requests: int | None
    model_rpm_limit: dict[str, int]
    model_tpm_limit: dict[str, int]
    model_max_budget: dict[str, object]
    aliases: dict[str, str]
    allowed_cache_controls: list[str]
    blocked: bool
    guardrails: list[str]
    permissions: dict[str, object]
    metadata: dict[str, object]
    config: dict[str, object]
    team_id: str | None
    created_at: str
    updated_at: str


class ListedUser(UserRow):
    """A record in a list, with the number of its keys."""

    key_count: int


class NewUserAnswer(UserRow):
    """A new record and its key, in clear this once; `key` is "" where none was made."""

    key: str
    key_name: str | None
    token_id: str | None
    expires: str | None


class UpdateAnswer(TypedDict):
    """A changed record, and the new key where one was made."""

    user_id: str
    data: UserRow
    key: NotRequired[str]
    key_name: NotRequired[str]
    token_id: NotRequired[str]
    expires: NotRequired[str | None]


class UserInfo(TypedDict):
    """A record with its live usage, the rows of its keys (never the keys themselves) and its teams."""

    user_id: str
    user_info: UserRow
    keys: list[KeyRow]
    teams: list[str]


class UserList(TypedDict):
    """A page of users."""

    users: list[ListedUser]
    total: int
    page: int
    page_size: int
    total_pages: int


class UpdateResult(TypedDict):
    """What became of one update of many; `key` and its like are there where one was made."""

    user_id: str | None
    user_email: str | None
    success: bool
    error: str | None
    updated_user: UserRow | None
    key: NotRequired[str]
    key_name: NotRequired[str]
    token_id: NotRequired[str]
    expires: NotRequired[str | None]


class BulkAnswer(TypedDict):
    """What became of each of many updates."""

    results: list[UpdateResult]
    total_requested: int
    successful_updates: int
    failed_updates: int


class BlockedUsers(TypedDict):
    """Those of the users named that are blocked now."""

    blocked_users: list[str]


class RoleInfo(TypedDict):
    """A role, for people."""

    description: str
    ui_label: str


class TeamMembers(TypedDict):
    """The users whose teams changed; there are no memberships here beyond that, but clients look for them."""

    team_id: str
    updated_users: list[UserRow]
    updated_team_memberships: list[dict[str, object]]


class Health(TypedDict):
    """How the gate is; `reason` is there when it is not well."""

    status: str
    version: str
    litellm_version: str
    reason: NotRequired[str]


def user_json(user: User) -> UserRow:
    """A record, flat."""
    return cast("UserRow", as_json(user.record))


def listed_user_json(user: User) -> ListedUser:
    """A record in a list."""
    return {**user_json(user), "key_count": len(user.keys)}


def user_info_json(user: User) -> UserInfo:
    """What `GET /user/info` answers."""
    return {
        "user_id": user.record.user_id,
        "user_info": user_json(user),
        "keys": [key_row(record) for record in user.keys],
        "teams": list(user.record.teams),
    }


def minted_key_json(minted: MintedKey) -> dict[str, str | None]:
    """The members that show a new key, once, in clear."""
    record = minted.record
    expires = iso_time(record.expires_at_ms) if record.expires_at_ms else None
    return {"key": minted.secret, "key_name": record.key_name, "token_id": record.token, "expires": expires}
