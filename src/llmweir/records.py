"""The user record: the bodies that change it, the value that is read back, and how it is stored between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import msgspec
from pydantic import Field, JsonValue, model_validator

from llmweir import durations, money
from llmweir.record_fields import (
    Aliases,
    DurationText,
    Email,
    FieldsBody,
    JsonDict,
    ModelBudget,
    ModelBudgetBody,
    ModelBudgets,
    ModelLimits,
    ModelList,
    Name,
    Names,
    Password,
    Usd,
    UserRole,
    Whole,
    canonical_json,
    iso_time,
    problems,
    read_model_budget,
)

__all__ = [
    "NO_MODELS",
    "STORED_FIELDS",
    "UNUSED_FIELDS",
    "ModelBudget",
    "NewUser",
    "UserFields",
    "UserRecord",
    "UserUpdate",
    "as_json",
    "iso_time",
    "parse_new",
    "parse_update",
    "problems",
    "record_from_stored",
    "stored_fields",
]

NO_MODELS = "no-default-models"
"""The entry of `models` that allows none; an empty list allows all."""

STORED_FIELDS = (
    "user_email", "user_alias", "teams", "user_role", "max_budget", "budget_duration", "models", "tpm_limit",
    "rpm_limit", "max_parallel_requests", "model_rpm_limit", "model_tpm_limit", "model_max_budget", "soft_budget",
    "aliases", "allowed_cache_controls", "blocked", "guardrails", "permissions", "metadata", "config", "team_id",
)  # fmt: skip
"""The fields that the record's document holds, each as JSON text."""


UNUSED_FIELDS = frozenset({
    "access_group_ids", "agent_id", "allowed_passthrough_routes", "allowed_routes", "allowed_vector_store_indexes",
    "auto_rotate", "budget_fallbacks", "budget_id", "budget_limits", "enforced_params", "key_type", "mcp_rpm_limit",
    "object_permission", "organization_id", "organizations", "policies", "project_id", "prompts", "rotation_interval",
    "router_settings", "rpm_limit_type", "sso_user_id", "tag_rpm_limit", "tags", "tpm_limit_type",
})  # fmt: skip
"""Fields that clients of the LiteLLM proxy send of a user and that mean nothing here: taken when empty."""


class UserFields(FieldsBody):
    """Every writable field of a record; `model_fields_set` names those that were sent, null among them."""

    unused_fields: ClassVar[frozenset[str]] = UNUSED_FIELDS

    user_id: Name | None = None
    user_email: Email | None = None
    password: Password | None = Field(default=None, repr=False)
    user_alias: Name | None = None
    teams: Names | None = None
    send_invite_email: bool | None = None
    user_role: UserRole | None = None
    max_budget: Usd | None = None
    budget_duration: DurationText | None = None
    models: ModelList | None = None
    tpm_limit: Whole | None = None
    rpm_limit: Whole | None = None
    max_parallel_requests: Whole | None = None
    model_rpm_limit: ModelLimits | None = None
    model_tpm_limit: ModelLimits | None = None
    model_max_budget: ModelBudgets | None = None
    soft_budget: Usd | None = None
    spend: Usd | None = None
    aliases: Aliases | None = None
    allowed_cache_controls: Names | None = None
    blocked: bool | None = None
    guardrails: Names | None = None
    permissions: JsonDict | None = None
    metadata: JsonDict | None = None
    config: JsonDict | None = None
    team_id: Name | None = None
    auto_create_key: bool | None = None
    key_alias: Name | None = None
    duration: DurationText | None = None

    @property
    def max_budget_nanos(self) -> int | None:
        """The budget in nano-dollars; None where it was not sent, or cleared."""
        return _nanos(self.max_budget)

    @property
    def soft_budget_nanos(self) -> int | None:
        """The soft budget in nano-dollars; None where it was not sent, or cleared."""
        return _nanos(self.soft_budget)

    @property
    def spend_nanos(self) -> int | None:
        """The amount to set as spent, in nano-dollars: None where it was not sent, 0 where null was."""
        return _nanos(self.spend or 0) if "spend" in self.model_fields_set else None

    @property
    def budget_period(self) -> durations.Duration | None:
        """The period of the budgets; None where it was not sent, or cleared."""
        return durations.parse(self.budget_duration) if self.budget_duration else None

    @property
    def key_life(self) -> durations.Duration | None:
        """How long the key of this call lives; None where it was not sent."""
        return durations.parse(self.duration) if self.duration else None

    @property
    def model_budgets(self) -> dict[str, ModelBudget]:
        """The budget of each model or prefix, whichever shape it was sent in; empty where none was."""
        return {model: read_model_budget(sent) for model, sent in (self.model_max_budget or {}).items()}

    @property
    def joins_team(self) -> str | None:
        """The team to add to the teams that the record has; None where the body itself names all its teams."""
        return None if "teams" in self.model_fields_set else self.team_id


class NewUser(UserFields):
    """The body of `POST /user/new`; null is the same as absent."""

    null_is_absent: ClassVar[bool] = True

    @property
    def joins_team(self) -> None:
        """A new record has no teams before, so `stored_fields` names them all."""
        return None

    @property
    def mints_key(self) -> bool:
        """Whether a key is to be made: yes, unless the body says no."""
        return self.auto_create_key is not False


class UserUpdate(UserFields):
    """The body of `POST /user/update`: a field not sent stays, null clears it.

    The user is found by `user_id`, or by `user_email` where there is no id; with an id, `user_email` changes it.
    """

    @model_validator(mode="after")
    def _names_a_user(self) -> Self:
        if self.user_id is None and self.user_email is None:
            raise ValueError("An update names its user by user_id or user_email.")
        return self


def parse_new(body: bytes) -> NewUser:
    """Reads the body of `POST /user/new`; raises pydantic.ValidationError, whatever the bytes."""
    return NewUser.model_validate_json(body)


def parse_update(body: bytes) -> UserUpdate:
    """Reads the body of `POST /user/update`; raises pydantic.ValidationError, whatever the bytes."""
    return UserUpdate.model_validate_json(body)


def stored_fields(model: UserFields) -> dict[str, str | None]:
    """Spells each field of the record's document that a body changes as JSON text; None clears it.

    A `team_id` is among `teams` where the body names the teams or the user is new, see `joins_team`. An email that
    only finds the user is left out, so that it stays in the case it first came in.
    """
    changed = model.model_fields_set
    if model.user_id is None and not isinstance(model, NewUser):
        changed = changed - {"user_email"}
    fields = {name: _stored(getattr(model, name)) for name in STORED_FIELDS if name in changed}
    if model.team_id is not None and model.joins_team is None:
        fields["teams"] = _stored(list(dict.fromkeys([*(model.teams or []), model.team_id])))
    return fields


def _stored(value: object) -> str | None:
    if value is None or value in ([], {}):
        return None
    return canonical_json(_plain(value))


def _plain(value: Any) -> JsonValue:
    if isinstance(value, ModelBudgetBody):
        value = value.model_dump(exclude_unset=True)
    plain: JsonValue = {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
    return plain


def _nanos(usd: float | None) -> int | None:
    return None if usd is None else money.usd_to_nanos(usd)


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    user_email: str | None = None
    user_alias: str | None = None
    teams: tuple[str, ...] = ()
    user_role: UserRole = "internal_user"
    budget_duration: str | None = None
    models: tuple[str, ...] = ()
    tpm_limit: int | None = None
    rpm_limit: int | None = None
    max_parallel_requests: int | None = None
    model_rpm_limit: dict[str, int] = {}
    model_tpm_limit: dict[str, int] = {}
    model_max_budget: dict[str, object] = {}
    aliases: dict[str, str] = {}
    allowed_cache_controls: tuple[str, ...] = ()
    blocked: bool = False
    guardrails: tuple[str, ...] = ()
    permissions: dict[str, object] = {}
    metadata: dict[str, object] = {}
    config: dict[str, object] = {}
    team_id: str | None = None


class UserRecord(_Document, frozen=True, kw_only=True):
    """A user as it stands: every readable field, money in nano-dollars, times in ms since 1970 UTC.

    `model_max_budget` is as it was sent. The password is not here, only whether there is one.
    """

    user_id: str
    max_budget_nanos: int | None = None
    soft_budget_nanos: int | None = None
    spend_nanos: int = 0
    reserved_nanos: int = 0
    model_spend_nanos: dict[str, int] = {}
    budget_reset_at_ms: int | None = None
    created_at_ms: int
    updated_at_ms: int
    has_password: bool = False

    @property
    def model_budgets(self) -> dict[str, ModelBudget]:
        """The budget of each model or prefix."""
        return {model: read_model_budget(sent) for model, sent in self.model_max_budget.items()}


class _Stored(_Document, frozen=True, kw_only=True):
    max_budget: int | float | None = None
    soft_budget: int | float | None = None


def record_from_stored(  # noqa: PLR0913 - one argument a live number
    user_id: str,
    fields: Mapping[str, str],
    *,
    created_at_ms: int,
    updated_at_ms: int,
    spend_nanos: int = 0,
    reserved_nanos: int = 0,
    model_spend_nanos: Mapping[str, int] | None = None,
    budget_reset_at_ms: int | None = None,
    has_password: bool = False,
) -> UserRecord:
    """Builds a record from the JSON texts of `stored_fields` and the live numbers.

    Raises ValueError (msgspec.ValidationError is one) where a text is not what this module wrote.
    """
    stored = msgspec.convert({name: json.loads(text) for name, text in fields.items()}, _Stored)
    return UserRecord(
        user_id=user_id,
        **{name: getattr(stored, name) for name in _Document.__struct_fields__},
        max_budget_nanos=_nanos(stored.max_budget),
        soft_budget_nanos=_nanos(stored.soft_budget),
        spend_nanos=spend_nanos,
        reserved_nanos=reserved_nanos,
        model_spend_nanos=dict(model_spend_nanos or {}),
        budget_reset_at_ms=budget_reset_at_ms,
        created_at_ms=created_at_ms,
        updated_at_ms=updated_at_ms,
        has_password=has_password,
    )


def as_json(record: UserRecord) -> dict[str, object]:
    """Gives the record as the admin API shows it: USD as numbers, times in ISO 8601, never a password."""
    shown: dict[str, object] = {"user_id": record.user_id}
    for name in _Document.__struct_fields__:
        value = getattr(record, name)
        shown[name] = list(value) if isinstance(value, tuple) else value
    return shown | {
        "max_budget": _usd(record.max_budget_nanos),
        "soft_budget": _usd(record.soft_budget_nanos),
        "spend": money.nanos_to_usd(record.spend_nanos),
        "reserved": money.nanos_to_usd(record.reserved_nanos),
        "model_spend": {model: money.nanos_to_usd(nanos) for model, nanos in record.model_spend_nanos.items()},
        "budget_reset_at": None if record.budget_reset_at_ms is None else iso_time(record.budget_reset_at_ms),
        "created_at": iso_time(record.created_at_ms),
        "updated_at": iso_time(record.updated_at_ms),
    }


def _usd(nanos: int | None) -> int | float | None:
    return None if nanos is None else money.nanos_to_usd(nanos)
