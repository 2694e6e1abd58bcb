"""API keys: the bodies that make and change one, the value that is read back, and its row as the store keeps it."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Self

import msgspec
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

from llmweir import durations, money
from llmweir.record_fields import (
    Aliases,
    DurationText,
    FieldsBody,
    JsonDict,
    ModelList,
    Name,
    Usd,
    Whole,
    canonical_json,
    iso_time,
)

KEY_LIMITS = frozenset(
    {"rpm_limit", "tpm_limit", "max_parallel_requests", "max_budget", "budget_duration", "spend"}
)  # fmt: skip
"""The fields of a key that only an admin sets: what it may use, and what it has used."""

ALL_MODELS = frozenset({"all-team-models", "all-proxy-models"})
"""Entries of a key's `models` by which clients say: whatever the user may call."""

UNUSED_FIELDS = frozenset({
    "access_group_ids", "agent_id", "allowed_cache_controls", "allowed_passthrough_routes", "allowed_routes",
    "allowed_vector_store_indexes", "auto_rotate", "budget_fallbacks", "budget_id", "budget_limits", "config",
    "default_estimated_output_tokens", "default_estimated_output_tokens_per_model", "denied_passthrough_routes",
    "disable_global_guardrails", "enable_prompt_caching", "end_user_budget_id", "enforced_params", "grace_period",
    "guardrails", "key_type", "mcp_rpm_limit", "model_max_budget", "model_rpm_limit", "model_tpm_limit",
    "new_master_key", "object_permission", "organization_id", "permissions", "policies", "project_id", "prompts",
    "rotation_interval", "router_settings", "rpm_limit_type", "send_invite_email", "soft_budget", "tag_rpm_limit",
    "tags", "temp_budget_expiry", "temp_budget_increase", "throttle_on_budget_exceeded", "tpd_limit",
    "tpm_limit_type",
})  # fmt: skip
"""Fields that clients of the LiteLLM proxy send of a key and that mean nothing here: taken when empty."""

_API_KEY = re.compile(r"sk-[!-~]{13,253}")


def _api_key(secret: SecretStr) -> SecretStr:
    if not _API_KEY.fullmatch(secret.get_secret_value()):
        raise ValueError("A key starts with 'sk-' and has 16 to 256 characters, printable ASCII without blanks.")
    return secret


def _key_name(secret: SecretStr) -> SecretStr:
    if not 1 <= len(secret.get_secret_value()) <= 256:
        raise ValueError("A key is named by itself or by its SHA-256 in hex, in at most 256 characters.")
    return secret


NewSecret = Annotated[
    SecretStr,
    AfterValidator(_api_key),
    WithJsonSchema(
        {"type": "string", "format": "password", "pattern": f"^{_API_KEY.pattern}$", "writeOnly": True}
    ),
]  # fmt: skip
KeyName = Annotated[
    SecretStr,
    AfterValidator(_key_name),
    WithJsonSchema({"type": "string", "format": "password", "minLength": 1, "maxLength": 256}),
]


class KeyFields(FieldsBody):
    """Every writable field of a key; `model_fields_set` names those that were sent, null among them."""

    unused_fields: ClassVar[frozenset[str]] = UNUSED_FIELDS
    null_texts: ClassVar[frozenset[str]] = frozenset(
        {"user_id", "key_alias", "duration", "team_id", "budget_duration"}
    )  # fmt: skip

    user_id: Name | None = None
    key_alias: Name | None = None
    duration: DurationText | None = None
    models: ModelList | None = None
    aliases: Aliases | None = None
    metadata: JsonDict | None = None
    team_id: Name | None = None
    rpm_limit: Whole | None = None
    tpm_limit: Whole | None = None
    max_parallel_requests: Whole | None = None
    max_budget: Usd | None = None
    budget_duration: DurationText | None = None
    spend: Usd | None = None
    blocked: bool | None = None

    @property
    def max_budget_nanos(self) -> int | None:
        """The budget in nano-dollars; None where it was not sent, or cleared."""
        return None if self.max_budget is None else money.usd_to_nanos(self.max_budget)

    @property
    def spend_nanos(self) -> int | None:
        """The amount to set as spent, in nano-dollars: None where it was not sent, 0 where null was."""
        return money.usd_to_nanos(self.spend or 0) if "spend" in self.model_fields_set else None

    @property
    def life(self) -> durations.Duration | None:
        """How long the key lives from now on; None where it was not sent, or where null was: for ever."""
        return durations.parse(self.duration) if self.duration else None


class NewKey(KeyFields):
    """The body of `POST /key/generate`; null is the same as absent. `key` is the key itself, made up if absent."""

    null_is_absent: ClassVar[bool] = True

    key: NewSecret | None = Field(default=None, repr=False)


class KeyUpdate(KeyFields):
    """The body of `POST /key/update`: a field not sent stays, null clears it.

    The key is named by `key` (in clear, or its SHA-256 in hex), or by `key_alias` where there is no `key`; with one,
    `key_alias` changes the alias.
    """

    key: KeyName | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _names_a_key(self) -> Self:
        if self.key is None and self.key_alias is None:
            raise ValueError("An update names its key by key or key_alias.")
        return self


class KeyRegeneration(KeyFields):
    """The body of `POST /key/{key}/regenerate`: what changes along with the key. `new_key` is made up if absent."""

    new_key: NewSecret | None = Field(default=None, repr=False)


class _Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    key_name: str
    key_alias: str | None = None
    team_id: str | None = None
    models: tuple[str, ...] = ()
    aliases: dict[str, str] = {}
    metadata: dict[str, object] = {}
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    max_parallel_requests: int | None = None
    budget_duration: str | None = None
    created_at_ms: int = 0


class KeyRecord(_Row, frozen=True, kw_only=True):
    """An API key as it stands, never in clear: money in nano-dollars, times in ms since 1970 UTC.

    `token` is the SHA-256 in hex; `expires_at_ms` 0 = never.
    """

    token: str
    user_id: str
    max_budget_nanos: int | None = None
    spend_nanos: int = 0
    budget_reset_at_ms: int | None = None
    blocked: bool = False
    expires_at_ms: int = 0


class _StoredRow(_Row, frozen=True, kw_only=True):
    max_budget: int | float | None = None


def stored_key(record: KeyRecord) -> str:
    """Spells the row that the store keeps of a key: JSON text without what is null or empty, the same for the same key.

    What lives elsewhere is not in it: token and user, spend and reset, block and expiry.
    """
    row = _StoredRow(**_common(record), max_budget=_usd(record.max_budget_nanos))
    return canonical_json(msgspec.to_builtins(row))


def key_from_stored(
    text: str | bytes,
    *,
    token: str,
    user_id: str,
    spend_nanos: int = 0,
    budget_reset_at_ms: int | None = None,
    blocked: bool = False,
    expires_at_ms: int = 0,
) -> KeyRecord:
    """Builds a key from the text of `stored_key` and the live numbers.

    Raises ValueError (msgspec.ValidationError is one) where the text is not what this module wrote.
    """
    row = msgspec.convert(json.loads(text), _StoredRow)
    return KeyRecord(
        **_common(row),
        token=token,
        user_id=user_id,
        max_budget_nanos=None if row.max_budget is None else money.usd_to_nanos(row.max_budget),
        spend_nanos=spend_nanos,
        budget_reset_at_ms=budget_reset_at_ms,
        blocked=blocked,
        expires_at_ms=expires_at_ms,
    )


def changed_key(record: KeyRecord, body: KeyFields, now_ms: int) -> KeyRecord:
    """The key with the fields that were sent; a `duration` counts from `now_ms` on.

    The user stays, and so does the end of the budget's period: that is for the store to move.
    """
    sent = body.model_fields_set & set(_Row.__struct_fields__)
    changes: dict[str, object] = {name: _filled(name, getattr(body, name)) for name in sent}
    if "max_budget" in body.model_fields_set:
        changes["max_budget_nanos"] = body.max_budget_nanos
    if body.spend_nanos is not None:
        changes["spend_nanos"] = body.spend_nanos
    if "blocked" in body.model_fields_set:
        changes["blocked"] = body.blocked is True
    if "duration" in body.model_fields_set:
        changes["expires_at_ms"] = 0 if body.life is None else durations.period_end_ms(body.life, now_ms, now_ms)
    return msgspec.structs.replace(record, **changes)


def key_json(record: KeyRecord) -> dict[str, object]:
    """Gives the key as the admin API shows it: USD as numbers, times in ISO 8601, never the key itself."""
    reset_ms, expires_ms = record.budget_reset_at_ms, record.expires_at_ms
    return {
        "token": record.token,
        "key_name": record.key_name,
        "key_alias": record.key_alias,
        "user_id": record.user_id,
        "team_id": record.team_id,
        "models": list(record.models),
        "aliases": record.aliases,
        "metadata": record.metadata,
        "spend": money.nanos_to_usd(record.spend_nanos),
        "max_budget": _usd(record.max_budget_nanos),
        "budget_duration": record.budget_duration,
        "budget_reset_at": None if reset_ms is None else iso_time(reset_ms),
        "rpm_limit": record.rpm_limit,
        "tpm_limit": record.tpm_limit,
        "max_parallel_requests": record.max_parallel_requests,
        "blocked": record.blocked,
        "created_at": iso_time(record.created_at_ms),
        "expires": iso_time(expires_ms) if expires_ms else None,
    }


def _common(row: _Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _Row.__struct_fields__}


def _filled(name: str, value: object) -> object:
    if name == "models":
        return tuple(value) if isinstance(value, list) else ()
    return {} if value is None and name in ("aliases", "metadata") else value


def _usd(nanos: int | None) -> int | float | None:
    return None if nanos is None else money.nanos_to_usd(nanos)
