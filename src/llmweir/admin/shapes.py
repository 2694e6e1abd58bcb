"""The shapes in which the admin API answers, as clients written for the LiteLLM proxy expect them."""

from __future__ import annotations

from llmweir.engine.users import KeyRow, MintedKey, User
from llmweir.records import as_json, iso_time


def user_json(user: User) -> dict[str, object]:
    """A record, flat."""
    return as_json(user.record)


def user_info_json(user: User) -> dict[str, object]:
    """What `GET /user/info` answers."""
    user_id = user.record.user_id
    return {
        "user_id": user_id,
        "user_info": user_json(user),
        "keys": [key_json(row, user_id) for row in user.keys],
        "teams": list(user.record.teams),
    }


def key_json(row: KeyRow, user_id: str) -> dict[str, object]:
    """A key row: never the key itself."""
    return {
        "token": row.token,
        "key_name": row.key_name,
        "key_alias": row.key_alias,
        "user_id": user_id,
        "team_id": None,
        "models": [],
        "aliases": {},
        "metadata": {},
        "spend": 0.0,
        "max_budget": None,
        "budget_duration": None,
        "rpm_limit": None,
        "tpm_limit": None,
        "max_parallel_requests": None,
        "blocked": False,
        "created_at": iso_time(row.created_at_ms),
        "expires": _expires(row),
    }


def minted_key_json(minted: MintedKey | None) -> dict[str, object]:
    """The members that show a key once, in clear; `key` is "" where none was minted."""
    if minted is None:
        return {"key": "", "key_name": None, "token_id": None, "expires": None}
    row = minted.row
    return {"key": minted.secret, "key_name": row.key_name, "token_id": row.token, "expires": _expires(row)}


def _expires(row: KeyRow) -> str | None:
    return iso_time(row.expires_at_ms) if row.expires_at_ms else None
