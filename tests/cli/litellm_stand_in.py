"""A stand-in for a running LiteLLM proxy, with rows as its release 1.106 answers them, and one for llmweir."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from tests.cli.canned import Call, Reply

from llmweir.key_records import NewKey
from llmweir.records import parse_new, parse_update, problems

PROXY_KEY = "sk-master-of-the-proxy"
OLD = "0f" * 32
OTHER = "1e" * 32

USER_ROW: dict[str, Any] = {
    "user_id": "ana",
    "user_alias": "Ana",
    "team_id": None,
    "sso_user_id": None,
    "organization_id": None,
    "object_permission_id": None,
    "password_reset_required": None,
    "last_breach_check_at": None,
    "teams": ["search"],
    "user_role": "internal_user",
    "max_budget": 25.0,
    "spend": 1.2345678912345,
    "user_email": "ana@example.org",
    "models": ["gpt-4o"],
    "metadata": {"model_rpm_limit": {"gpt-4o": 10}, "desk": 4},
    "max_parallel_requests": 3,
    "tpm_limit": 30000,
    "rpm_limit": 60,
    "budget_duration": "30d",
    "budget_reset_at": "2026-12-01T00:00:00Z",
    "allowed_cache_controls": ["no-cache"],
    "policies": [],
    "model_spend": {},
    "model_max_budget": {"gpt-4o": {"budget_limit": 5.0, "time_period": "1d"}},
    "created_at": "2026-11-01T00:00:00Z",
    "updated_at": None,
    "organization_memberships": None,
    "object_permission": None,
    "key_count": 1,
}
KEY_ROW: dict[str, Any] = {
    "token": OLD,
    "key_name": "sk-...abcd",
    "key_alias": "ci",
    "spend": 0.25,
    "total_spend": 0.5,
    "max_budget": 5.0,
    "expires": None,
    "models": ["gpt-4o"],
    "aliases": {},
    "config": {},
    "user_id": "ana",
    "team_id": None,
    "max_parallel_requests": None,
    "metadata": {},
    "tpm_limit": None,
    "rpm_limit": 5,
    "budget_duration": None,
    "budget_reset_at": None,
    "allowed_cache_controls": [],
    "allowed_routes": [],
    "permissions": {},
    "model_spend": {},
    "model_max_budget": {},
    "soft_budget_cooldown": False,
    "blocked": None,
    "litellm_budget_table": None,
    "budget_id": None,
    "org_id": None,
    "created_at": "2026-11-01T00:00:00Z",
    "created_by": "default_user_id",
    "rotation_count": 0,
    "auto_rotate": False,
    "team_models": [],
    "team_blocked": False,
    "api_key": None,
    "is_session_token": False,
}


def user_row(**changes: Any) -> dict[str, Any]:
    return {**USER_ROW, **changes}


def bare_user(user_id: str) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(USER_ROW)
    return {**empty, "user_id": user_id, "spend": 0.0, "teams": [], "models": [], "model_max_budget": {}}


def key_row(**changes: Any) -> dict[str, Any]:
    return {**KEY_ROW, **changes}


@dataclass
class Proxy:
    """Answers as a LiteLLM proxy does; `lists_hashes` as one that does not list whole rows."""

    users: list[dict[str, Any]] = field(default_factory=list)
    keys: list[dict[str, Any]] = field(default_factory=list)
    lists_hashes: bool = False

    def __call__(self, call: Call) -> Reply:
        if call.headers.get("authorization") != f"Bearer {PROXY_KEY}":
            return _refused(401, "Authentication Error")
        if call.path == "/key/info":
            row = next(row for row in self.keys if row["token"] == call.query["key"][0])
            return Reply({"key": row["token"], "info": {k: v for k, v in row.items() if k != "token"}})
        page = int(call.query["page"][0])
        if call.path == "/user/list":
            size = int(call.query["page_size"][0])
            rows = self.users[(page - 1) * size : page * size]
            paging = {"total": len(self.users), "page": page, "page_size": size}
            return Reply({"users": rows, **paging, "total_pages": -(-len(self.users) // size)})
        assert call.path == "/key/list"
        size = int(call.query["size"][0])
        listed: list[Any] = self.keys[(page - 1) * size : page * size]
        if self.lists_hashes:
            listed = [row["token"] for row in listed]
        pages = -(-len(self.keys) // size)
        return Reply({"keys": listed, "total_count": len(self.keys), "current_page": page, "total_pages": pages})


@dataclass
class Weir:
    """Answers as llmweir does, with its own models of bodies; `refuses` and `dies_after` make trouble."""

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()
    dies_after: int | None = None
    loses_answers: bool = False

    def __call__(self, call: Call) -> Reply | None:
        if call.headers.get("authorization") != "Bearer sk-admin-of-the-tests":
            return _refused(401, "This key is not known.")
        try:
            return self._answer(call)
        except ValidationError as error:
            return Reply({"detail": problems(error)}, 422)

    def _answer(self, call: Call) -> Reply | None:
        body = call.body or {}
        if call.path == "/user/list":
            rows = sorted(self.users.values(), key=lambda row: str(row["user_id"]))
            page, size = int(call.query["page"][0]), int(call.query["page_size"][0])
            pages = -(-len(rows) // size)
            return Reply({"users": rows[(page - 1) * size : page * size], "total": len(rows), "total_pages": pages})
        if call.path == "/key/info":
            known = call.query["key"][0] in self.keys
            return Reply({"key": "x", "info": {}}) if known else _refused(404, "There is no such key.")
        if body.get("user_id") in self.refuses or body.get("key_alias") in self.refuses:
            return _refused(409, "It is taken.")
        if call.path == "/key/generate":
            return self._generate(body)
        if call.path == "/user/new":
            parse_new(json.dumps(body).encode())
            self.users[body["user_id"]] = body
            return Reply({"user_id": body["user_id"], "key": ""})
        assert call.path == "/user/update"
        parse_update(json.dumps(body).encode())
        self.users[body["user_id"]] |= body
        return Reply({"user_id": body["user_id"], "data": {}})

    def _generate(self, body: dict[str, Any]) -> Reply | None:
        NewKey.model_validate_json(json.dumps(body))
        assert body["user_id"] in self.users
        if self.dies_after is not None and len(self.keys) >= self.dies_after and not self.loses_answers:
            return None
        self.keys[hashlib.sha256(body["key"].encode()).hexdigest()] = body
        if self.dies_after is not None and len(self.keys) > self.dies_after:
            return None
        return Reply({"key": body["key"]})


def _refused(status: int, message: str) -> Reply:
    return Reply({"error": {"message": message, "type": "x", "param": None, "code": str(status)}}, status)
