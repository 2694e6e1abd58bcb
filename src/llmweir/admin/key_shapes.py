"""The shapes in which the routes of keys answer, as clients written for the LiteLLM proxy expect them."""

from __future__ import annotations

from typing import TypedDict, cast

from llmweir.engine.api_keys import MintedKey
from llmweir.key_records import KeyRecord, key_json


class KeyRow(TypedDict):
    """A key as it stands, never the key itself: `token` is its SHA-256 in hex."""

    token: str
    key_name: str
    key_alias: str | None
    user_id: str
    team_id: str | None
    models: list[str]
    aliases: dict[str, str]
    metadata: dict[str, object]
    spend: float
    max_budget: float | None
    budget_duration: str | None
    budget_reset_at: str | None
    rpm_limit: int | None
    tpm_limit: int | None
    max_parallel_requests: int | None
    blocked: bool
    created_at: str
    expires: str | None


class MintedRow(KeyRow):
    """A new key: its row, and the key itself in clear this once."""

    key: str
    token_id: str


class KeyInfo(TypedDict):
    """A key by the name that it was asked for by, and its row."""

    key: str
    info: KeyRow


class KeyList(TypedDict):
    """A page of keys: their hashes, or their rows where those are asked for."""

    keys: list[str | KeyRow]
    total_count: int
    current_page: int
    total_pages: int


class DeletedKeys(TypedDict):
    """The keys and the aliases that were sent, none of which is there any more."""

    deleted_keys: list[str]


def key_row(record: KeyRecord) -> KeyRow:
    """A key, flat."""
    return cast("KeyRow", key_json(record))


def minted_row(minted: MintedKey) -> MintedRow:
    """A new key, flat, with the key itself."""
    return {**key_row(minted.record), "key": minted.secret, "token_id": minted.record.token}
