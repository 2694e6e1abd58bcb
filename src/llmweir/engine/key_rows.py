"""An API key in its user's data: read from there, and spelled as changes to it."""

from __future__ import annotations

from collections.abc import Iterator

from llmweir import durations
from llmweir.engine.flatten import Change
from llmweir.engine.key_hashes import hash_of_token, token_of_hash
from llmweir.engine.user_data import Stored
from llmweir.key_records import ALL_MODELS, KeyRecord, key_from_stored, stored_key
from llmweir.records import NO_MODELS

_ROW = "key:"


def key_records(stored: Stored) -> tuple[KeyRecord, ...]:
    """All API keys of a user, oldest first."""
    rows = (_record(stored, name.removeprefix(_ROW)) for name in stored.doc if name.startswith(_ROW))
    return tuple(sorted((row for row in rows if row is not None), key=lambda row: (row.created_at_ms, row.token)))


def account_of(stored: Stored, record: KeyRecord) -> str:
    """The name of the account of a key's own limits, which is there only if it has some."""
    return f"k:{stored.keys['k:' + hash_of_token(record.token)].split()[2]}"


def new_key_changes(record: KeyRecord) -> list[Change]:
    """What writes a new key into its user's data."""
    spend = _spend(record) if record.spend_nanos else ()
    lacks: Change = ("lacks", hash_of_token(record.token), "")
    return [lacks, *_state(record), *_lists(record, None), *_period(record, None), *spend]


def key_changes(record: KeyRecord, before: KeyRecord, *, sets_spend: bool) -> list[Change]:
    """What changes a key, `before`, to `record`; nothing is written if it has changed since, or is deleted."""
    spend = _spend(record) if sets_spend else ()
    return [*_as_it_was(before), *_state(record), *_lists(record, before), *_period(record, before), *spend]


def moved_key_changes(record: KeyRecord, before: KeyRecord) -> list[Change]:
    """What puts a key under the hash of a new one; all that it has used and is limited to stays."""
    old_hash, new_hash = hash_of_token(before.token), hash_of_token(record.token)
    return [
        *_as_it_was(before),
        ("lacks", new_hash, ""),
        ("move_key", old_hash, new_hash),
        ("undoc", _ROW + old_hash, ""),
        *_state(record),
    ]


def dropped_key_changes(record: KeyRecord) -> list[Change]:
    """What deletes a key with all that is its own."""
    key_hash = hash_of_token(record.token)
    return [("needs", key_hash, ""), ("drop_key", key_hash, "")]


def _record(stored: Stored, key_hash: str) -> KeyRecord | None:
    state = stored.keys.get(f"k:{key_hash}")
    if state is None:
        return None
    expires_at_ms, blocked, key_id, *_ = state.split()
    account = stored.accounts.get(f"k:{key_id}")
    return key_from_stored(
        stored.doc[_ROW + key_hash],
        token=token_of_hash(key_hash),
        user_id=stored.user_id,
        spend_nanos=account.spent_nanos if account is not None else int(stored.use.get(f"ks:{key_id}", 0)),
        budget_reset_at_ms=account.ends_at_ms if account is not None else None,
        blocked=blocked == "1",
        expires_at_ms=int(expires_at_ms),
    )


def _as_it_was(before: KeyRecord) -> Iterator[Change]:
    key_hash = hash_of_token(before.token)
    yield "key_is", key_hash, f"{before.expires_at_ms} {int(before.blocked)}"
    yield "doc_is", _ROW + key_hash, stored_key(before)


def _state(record: KeyRecord) -> Iterator[Change]:
    key_hash, text = hash_of_token(record.token), f"{record.expires_at_ms} {int(record.blocked)}"
    limits = (record.rpm_limit, record.tpm_limit, record.max_parallel_requests, record.max_budget_nanos)
    flags = ("a" if record.aliases else "") + ("m" if _listed(record) else "")
    if flags or record.budget_duration or any(limit is not None for limit in limits):
        text += "".join(f" {-1 if limit is None else limit}" for limit in limits) + f" {flags or '-'}"
    yield "key", key_hash, text
    yield "doc", _ROW + key_hash, stored_key(record)


def _lists(record: KeyRecord, before: KeyRecord | None) -> Iterator[Change]:
    key_hash = hash_of_token(record.token)
    if record.models != (before.models if before is not None else ()):
        yield "key_list", key_hash, "\n".join(("m", *(model for model in _listed(record) if model != NO_MODELS)))
    if record.aliases != (before.aliases if before is not None else {}):
        yield "key_list", key_hash, "\n".join(("a", *(part for pair in record.aliases.items() for part in pair)))


def _period(record: KeyRecord, before: KeyRecord | None) -> Iterator[Change]:
    if record.budget_duration != (before.budget_duration if before is not None else None):
        text = record.budget_duration
        yield "key_period", hash_of_token(record.token), durations.encode(durations.parse(text)) if text else ""


def _spend(record: KeyRecord) -> Iterator[Change]:
    yield "key_spend", hash_of_token(record.token), record.spend_nanos


def _listed(record: KeyRecord) -> tuple[str, ...]:
    """The models a key is held to, or the word for none of them; empty where it may call whatever its user may."""
    return () if ALL_MODELS.intersection(record.models) else record.models
