"""What users may do with their own keys: nothing that widens what an admin has set."""

from __future__ import annotations

from collections.abc import Sequence

from llmweir.admin.access import Identity, Right
from llmweir.admin.errors import AdminError
from llmweir.key_records import ALL_MODELS, KEY_LIMITS, KeyFields, KeyRecord
from llmweir.records import NO_MODELS

MAX_OWN_KEYS = 100
_OWN_LIMITS = ("rpm_limit", "tpm_limit", "max_parallel_requests", "max_budget_nanos")


def check_key_user(identity: Identity, record: KeyRecord, right_to_others: Right = Right.WRITE_ALL) -> None:
    """Raises AdminError (403) where the key is another user's and the caller has no right to that."""
    if record.user_id != identity.user_id and not identity.may(right_to_others):
        raise AdminError(403, "Your role may only do this with your own keys.", "key")


def check_limits(identity: Identity, body: KeyFields) -> None:
    """Raises AdminError (403) where somebody who is no admin sends a limit, or what is spent."""
    sent = sorted(KEY_LIMITS & body.model_fields_set)
    if sent and not identity.is_admin:
        raise AdminError(403, "Only an admin sets the limits of a key, and what is spent.", sent[0])


def check_models(identity: Identity, record: KeyRecord, body: KeyFields) -> None:
    """Raises AdminError (403) where somebody who is no admin allows a key models that it was not allowed before."""
    if identity.is_admin or "models" not in body.model_fields_set:
        return
    before = record.models
    if _is_limited(before) and not _lies_within(body.models or (), before):
        raise AdminError(403, "Only an admin allows a key more models than it has.", "models")


def check_number(identity: Identity) -> None:
    """Raises AdminError (403) where somebody who is no admin has as many keys as may be: they all lie in one record."""
    if not identity.is_admin and identity.user is not None and len(identity.user.keys) >= MAX_OWN_KEYS:
        raise AdminError(403, f"Only an admin gives a user more than {MAX_OWN_KEYS} keys; delete some first.")


def check_life(identity: Identity, body: KeyFields) -> None:
    """Raises AdminError (403) where a key that expires, in hands that are no admin's, gives a key more time to live."""
    held = identity.key
    if "duration" in body.model_fields_set and held is not None and held.expires_at_ms and not identity.is_admin:
        raise AdminError(403, "A key that expires does not set how long keys live; use one that does not.", "duration")


def check_escape(identity: Identity, target: KeyRecord | None = None) -> None:
    """Raises AdminError (403) where a key that expires or has limits asks for a new key, which would not have them.

    A key may still ask for a new one in its own place (`target`), which keeps its limits.
    """
    held = identity.key
    if identity.is_admin or held is None or (target is not None and target.token == held.token):
        return
    if held.expires_at_ms or _is_limited(held.models) or any(getattr(held, name) is not None for name in _OWN_LIMITS):
        raise AdminError(403, "A key that expires or has limits of its own makes no other keys; use one without.")


def _is_limited(models: Sequence[str]) -> bool:
    return bool(models) and not ALL_MODELS & set(models)


def _lies_within(models: Sequence[str], before: Sequence[str]) -> bool:
    return _is_limited(models) and all(entry == NO_MODELS or _is_covered(entry, before) for entry in models)


def _is_covered(entry: str, before: Sequence[str]) -> bool:
    prefixes = [each[:-1] for each in before if each.endswith("*")]
    return entry in before or any(entry.startswith(prefix) for prefix in prefixes)
