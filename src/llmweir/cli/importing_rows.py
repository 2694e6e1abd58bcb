"""The rows of a LiteLLM proxy as bodies for llmweir: what carries over, and a note for each thing that does not."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import msgspec
from pydantic import ValidationError

from llmweir.key_records import NewKey
from llmweir.money import MAX_USD
from llmweir.record_fields import RequestBody
from llmweir.records import NO_MODELS, NewUser, problems

USER_FIELDS = (
    "user_id", "user_email", "user_alias", "user_role", "teams", "models", "max_budget", "soft_budget",
    "budget_duration", "tpm_limit", "rpm_limit", "max_parallel_requests", "model_rpm_limit", "model_tpm_limit",
    "model_max_budget", "spend", "aliases", "allowed_cache_controls", "blocked", "guardrails", "permissions",
    "metadata", "config", "team_id",
)  # fmt: skip
KEY_FIELDS = (
    "user_id", "key_alias", "team_id", "models", "aliases", "metadata", "rpm_limit", "tpm_limit",
    "max_parallel_requests", "max_budget", "budget_duration", "spend", "blocked",
)  # fmt: skip
_FROM_METADATA = ("model_rpm_limit", "model_tpm_limit", "guardrails")
"""What LiteLLM keeps inside a row's metadata and llmweir has a field for."""
_ACTING_METADATA = frozenset({
    "model_itpm_limit", "model_otpm_limit", "mcp_rpm_limit", "tag_rpm_limit", "rpm_limit_type", "tpm_limit_type",
    "enforced_params", "temp_budget_increase", "temp_budget_expiry", "throttle_on_budget_exceeded",
    "end_user_budget_id", "disable_global_guardrails", "policies", "tags", "prompts", "logging",
    "allowed_passthrough_routes", "denied_passthrough_routes",
})  # fmt: skip
_BOOKKEEPING = frozenset({
    "created_at", "updated_at", "created_by", "updated_by", "settings_updated_at", "last_active", "key_count",
    "token", "key_name", "expires", "budget_reset_at", "password", "password_reset_required", "last_breach_check_at",
    "api_key", "total_spend", "soft_budget_cooldown", "last_refreshed_at", "parent_otel_span", "request_route",
    "is_session_token", "rotation_count", "last_rotation_at", "key_rotation_at", "litellm_budget_table", "key_type",
    "object_permission", "organization_memberships", "model_max_budget_usage",
})  # fmt: skip
_TEAM_LIMITS = frozenset({
    "team_max_budget", "team_soft_budget", "team_tpm_limit", "team_rpm_limit", "team_tpd_limit", "team_models",
    "team_model_max_budget", "team_member_tpm_limit", "team_member_rpm_limit", "team_blocked",
})  # fmt: skip
_ELSEWHERE = ("team_", "organization_", "project_", "end_user_", "user_")
"""What a key's row repeats of its team, its organization, its user."""
_BUDGET_MEMBERS = ("max_budget", "budget_duration", "tpm_limit", "rpm_limit", "max_parallel_requests")
_WORD_DURATIONS = {"hourly": "1h", "daily": "24h", "weekly": "7d", "monthly": "30d"}
_SPECIAL_MODELS = {"all-proxy-models": "*", "all-team-models": None}
_REASONS = {
    "budget_id": "A budget that several share by its id does not exist here; its limits are taken where they show.",
    "model_spend": "What is spent of each model's budget starts at 0.",
    "sso_user_id": "There is no signing in by SSO.",
    "object_permission_id": "Permissions for MCP servers and vector stores do not exist here.",
    "allowed_routes": "Routes are not limited by key.",
    "team_limits": "A team has no limits here.",
}
_NO_FIELD = "There is no such field here."
_NOT_ON_KEYS = "A key has none of its own here; set it on the key's user."
_ON_USERS = frozenset(USER_FIELDS) - frozenset(KEY_FIELDS)


class Note(msgspec.Struct, frozen=True):
    """One field of a row that does not carry over as it is, and why."""

    field: str
    reason: str


class Draft(msgspec.Struct, frozen=True):
    """A row as the body of a call, and what it says of the rest; without a body it cannot be carried over."""

    body: dict[str, Any] | None
    notes: tuple[Note, ...]


def user_draft(row: Mapping[str, Any]) -> Draft:
    """A user's row as the body of `POST /user/new`."""
    sieve = _Sieve(row, USER_FIELDS)
    sieve.take_metadata(_FROM_METADATA)
    sieve.take_teams()
    sieve.mend()
    if sieve.body.get("user_role") == "internal_user_viewer":
        sieve.note("user_role", "Kept; but here it may look and not call models.")
    return sieve.draft(NewUser)


def key_draft(row: Mapping[str, Any], now: datetime) -> Draft:
    """A key's row as the body of `POST /key/generate`, without the key itself; none for one that has expired."""
    sieve = _Sieve(row, KEY_FIELDS)
    sieve.take_metadata(())
    sieve.take_budget()
    sieve.mend()
    if row.get("expires"):
        life_s = _life_s(row["expires"], now)
        if life_s < 1:
            return Draft(None, (Note("expires", "It has expired, or does not say when it will."),))
        sieve.body["duration"] = f"{math.ceil(life_s)}s"
    return sieve.draft(NewKey)


class _Sieve:
    """A row on its way into a body; what stays behind leaves a note."""

    def __init__(self, row: Mapping[str, Any], fields: tuple[str, ...]) -> None:
        self._row = row
        self._fields = fields
        self.body = {name: copy.deepcopy(row[name]) for name in fields if row.get(name) not in (None, "", [], {})}
        self._notes: list[Note] = []
        for name in sorted(row.keys() - set(fields) - _BOOKKEEPING):
            if row[name] not in (None, "", [], {}, False, 0):
                self._note_unknown(name)

    def note(self, field: str, reason: str) -> None:
        note = Note(field, reason)
        if note not in self._notes:
            self._notes.append(note)

    def take_metadata(self, fields: tuple[str, ...]) -> None:
        """Gives what LiteLLM keeps in the metadata the field it has here."""
        metadata = self.body.get("metadata")
        if not isinstance(metadata, dict):
            return
        found = {name: metadata[name] for name in fields if metadata.get(name) not in (None, [], {})}
        for name, value in found.items():
            self.body.setdefault(name, value)
        self.body["metadata"] = {name: value for name, value in metadata.items() if name not in fields}
        for name in sorted(self.body["metadata"].keys() & {*_ACTING_METADATA, *_FROM_METADATA}):
            if metadata[name] not in (None, [], {}, False):
                self.note(f"metadata.{name}", "Kept in the metadata, where it has no effect here.")

    def take_teams(self) -> None:
        """Reads teams as ids, whether they come as ids or as objects."""
        teams = self.body.get("teams")
        if isinstance(teams, list):
            self.body["teams"] = [team.get("team_id") if isinstance(team, dict) else team for team in teams]

    def take_budget(self) -> None:
        """Takes the limits of an attached budget where the key has none of its own, as LiteLLM does."""
        table = self._row.get("litellm_budget_table")
        limits = table if isinstance(table, dict) else {}
        for name in _BUDGET_MEMBERS:
            if limits.get(name) is not None:
                self.body.setdefault(name, limits[name])

    def mend(self) -> None:
        """Brings values into the ranges and spellings that llmweir has."""
        for name in ("max_budget", "soft_budget", "spend"):
            if name in self.body:
                self.body[name] = self._usd(name, self.body[name])
        self._mend_duration()
        self._mend_models()
        self._mend_model_budgets()

    def draft(self, model: type[RequestBody]) -> Draft:
        """The body, once llmweir's own model takes it; whatever it refuses is dropped with its reason."""
        while True:
            try:
                model.model_validate_json(json.dumps(self.body))
            except ValidationError as error:
                found = problems(error)
            else:
                return Draft(self.body, tuple(self._notes))
            for problem in reversed(found):
                if not self._drop(problem["loc"], str(problem["msg"])):
                    return Draft(None, (*self._notes, Note("user_id", str(problem["msg"]))))

    def _note_unknown(self, name: str) -> None:
        if name in _TEAM_LIMITS:
            self.note("team_*", _REASONS["team_limits"])
        elif name in _ON_USERS:
            self.note(name, _NOT_ON_KEYS)
        elif self._fields is not KEY_FIELDS or not name.startswith(_ELSEWHERE):
            self.note(name, _REASONS.get(name, _NO_FIELD))

    def _usd(self, name: str, value: Any) -> Any:
        """An amount in whole nano-dollars, within what llmweir can hold."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            return value
        if value > MAX_USD:
            self.note(name, f"Lowered to {MAX_USD} USD, the most that an amount may be here.")
            return MAX_USD
        return float(Decimal(repr(value)).quantize(Decimal("1e-9"), ROUND_HALF_UP))

    def _mend_duration(self) -> None:
        given = self.body.get("budget_duration")
        if isinstance(given, str):
            self.body["budget_duration"] = _WORD_DURATIONS.get(given.strip().lower(), given)

    def _mend_models(self) -> None:
        models = self.body.get("models")
        if not isinstance(models, list):
            return
        if "all-team-models" in models:
            self.note("models", "A team has no models here, so 'all-team-models' limits nothing.")
        kept = [_SPECIAL_MODELS.get(model, model) if isinstance(model, str) else model for model in models]
        self.body["models"] = [model for model in kept if model is not None]

    def _mend_model_budgets(self) -> None:
        given = self.body.get("model_max_budget")
        if not isinstance(given, dict):
            return
        kept = {model: self._model_budget(model, sent) for model, sent in given.items()}
        self.body["model_max_budget"] = {model: budget for model, budget in kept.items() if budget is not None}

    def _model_budget(self, model: str, sent: Any) -> Any:
        """A model's budget; the rates that LiteLLM lets it hold go where rates are."""
        if not isinstance(sent, dict):
            return self._usd("model_max_budget", sent)
        for rate, field in (("rpm_limit", "model_rpm_limit"), ("tpm_limit", "model_tpm_limit")):
            rates = self.body.setdefault(field, {}) if sent.get(rate) is not None else None
            if isinstance(rates, dict):
                rates.setdefault(model, sent[rate])
        limit = sent.get("max_budget", sent.get("budget_limit"))
        period = sent.get("budget_duration", sent.get("time_period"))
        if limit is None:
            return None
        budget = {"max_budget": self._usd("model_max_budget", limit)}
        if period is not None:
            budget["budget_duration"] = _WORD_DURATIONS.get(str(period).strip().lower(), period)
        return budget

    def _drop(self, loc: Any, reason: str) -> bool:
        """Drops what was refused: an entry, else the field; answers False where it is what names the row."""
        field = loc[1] if len(loc) > 1 else "user_id"
        if field == "user_id" or field not in self.body:
            return False
        self.note(field, reason)
        entries = self.body[field]
        if len(loc) > 2 and isinstance(entries, dict | list) and _remove(entries, loc[2]) and entries:
            return True
        if field == "models":
            # An empty list would allow every model.
            self.body["models"] = [NO_MODELS]
        else:
            del self.body[field]
        return True


def _remove(entries: dict[Any, Any] | list[Any], place: Any) -> bool:
    is_there = place in entries if isinstance(entries, dict) else isinstance(place, int) and place < len(entries)
    if is_there:
        del entries[place]
    return is_there


def _life_s(expires: Any, now: datetime) -> float:
    """How long a key still lives; 0 where that cannot be read."""
    try:
        at = datetime.fromisoformat(expires)
    except (TypeError, ValueError):
        return 0
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds()
