"""Those who call the admin API, and what it answers when it refuses them."""

from __future__ import annotations

import json
from typing import Any

import httpx
from tests.admin.serving import bearer

from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.users import Users
from llmweir.key_records import NewKey
from llmweir.records import parse_new


async def a_user(users: Users, user_id: str, **fields: Any) -> dict[str, str]:
    """Make a user with a key; gives the header that presents it."""
    await users.create(parse_new(json.dumps({"user_id": user_id, **fields}).encode()))
    return bearer((await ApiKeys(users).mint(user_id, NewKey())).secret)


async def a_key(users: Users, user_id: str, **fields: Any) -> str:
    """Make a key for a user; gives it in clear."""
    return (await ApiKeys(users).mint(user_id, NewKey.model_validate_json(json.dumps(fields)))).secret


def done(answer: httpx.Response) -> dict[str, Any]:
    """Give what a 200 holds."""
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def problem(answer: httpx.Response) -> tuple[int, Any]:
    """Give an answer's status and what it says is at fault: a parameter, or the places of a validation error."""
    content = answer.json()
    if "detail" in content:
        return answer.status_code, [line["loc"] for line in content["detail"]]
    assert content["error"]["code"] == str(answer.status_code)
    return answer.status_code, content["error"]["param"]
