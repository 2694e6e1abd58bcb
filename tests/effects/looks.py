"""The ways of looking at what a field does that belong to one field alone."""

from __future__ import annotations

import re

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from tests.effects.case import Case, asked, once_it_ends, outcome
from tests.effects.gates import ADMIN
from tests.harness import eventually

from llmweir.engine.link import Link
from llmweir.engine.users import Users

SPENT = "429 insufficient_quota insufficient_quota"


async def spent_and_waited(case: Case) -> str:
    """What a request comes to after the whole budget is spent and, where there is a period, that has ended."""
    changed = await case.change(spend=1)
    return await once_it_ends(case, changed["budget_reset_at"], "200")


async def spent_of_a_model_and_waited(case: Case) -> str:
    """The same with a model's budget, whose period nothing but the requests shows."""
    for _ in range(5):  # a period may end between the two requests
        await case.chat(case.here)
        if await asked(case) == SPENT:
            await eventually(lambda: _passes(case))
            return "200 after a while"
    return "200 at once"


async def _passes(case: Case) -> bool:
    return await asked(case) == "200"


async def until_the_key_ends(case: Case) -> str:
    """What a request comes to once the key has expired, where it does."""
    query = {"key": case.key}
    row = (await case.there.get("/key/info", params=query, headers=ADMIN)).json()["info"]
    return await once_it_ends(case, row["expires"], "401 invalid_request_error invalid_api_key")


async def alerts_raised(case: Case) -> int:
    """How many alerts of the user reach the webhook with three requests on both gates."""
    alerts, before = case.weirs.around.alerts, len(_alerts_of(case, case.user_id))
    for gate in (case.here, case.there, case.here):
        assert (await case.chat(gate)).status_code == 200
    if (await case.row())["soft_budget"] is not None:
        await eventually(lambda: len(_alerts_of(case, case.user_id)) > before)
    other = Case(case.weirs)  # whose alert comes after those that would have come
    await other.make(soft_budget=0.000001)
    await other.chat()
    await eventually(lambda: any(alert["user_id"] == other.user_id for alert in alerts))
    return len(_alerts_of(case, case.user_id)) - before


def _alerts_of(case: Case, user_id: str) -> list[object]:
    return [alert for alert in case.weirs.around.alerts if alert["user_id"] == user_id]


async def model_behind_a_name(case: Case) -> str:
    """The model that the upstream is asked for where the caller asks for `fast`."""
    model: str = (await case.chat(model="fast")).json()["seen"]["body"]["model"]
    return model


async def two_cache_controls(case: Case) -> list[str]:
    """What requests with the cache controls `no-cache` and `ttl` come to."""
    return [outcome(await case.chat(cache=control)) for control in ({"no-cache": True}, {"ttl": 5})]


async def name_in_a_refusal(case: Case) -> str:
    """Whom a refusal speaks of, and whom the upstream is told of."""
    told = (await case.chat()).json()["seen"]["headers"].get("x-llmweir-user-alias")
    await case.change(rpm_limit=0)
    message = (await case.chat()).json()["error"]["message"]
    await case.change(rpm_limit=None)
    found = re.search(r"for user (\S+) on", message)
    assert found is not None, message
    name = found[1].replace(case.user_id, "the id")
    return f"{name}, {told}"


async def found_by_email(case: Case) -> list[int]:
    """Whether an update finds the user by the address in capitals, and whether another user may have it."""
    address = f"{case.user_id}@EXAMPLE.org"
    found = await case.ask("/user/update", user_email=address)
    other = {"user_id": f"{case.user_id}-too", "user_email": address}
    made = await case.ask("/user/new", **other)
    if made == 200:
        await case.ask("/user/delete", user_ids=[other["user_id"]])
    return [found, made]


async def password_that_fits(case: Case) -> bool | None:
    """Whether the hash that is kept is the password's; None where there is none."""
    link = Link(case.weirs.redis_url, timeout_ms=10_000)
    try:
        kept = await Users(link).password_hash(case.user_id)
    finally:
        await link.aclose()
    if kept is None:
        return None
    try:
        return PasswordHasher().verify(kept, "open sesame")
    except VerifyMismatchError:
        return False


async def link_in_the_mail(case: Case) -> int | None:
    """What the link of the mail that the change sent leads to on the other gate; None where there is no mail."""
    mails = case.weirs.around.inbox.mails[case.mails_before :]
    if not mails:
        return None
    [mail] = mails
    assert mail["to"] == f"{case.user_id}@example.org"
    body = mail.get_body(("plain",))
    assert body is not None
    path = re.search(r"http://weir\.example\.org(/invite/\S+)", body.get_content())
    assert path is not None
    return (await case.there.get(path[1])).status_code


async def key_just_made(case: Case) -> str | None:
    """What a request with the key that the change answered comes to; None where it answered none."""
    key = case.answer.json().get("key")
    return outcome(await case.chat(key=key)) if key else None


async def alias_of_the_key(case: Case) -> str | None:
    """The alias of the user's key, without the user's id."""
    found = await case.there.get("/key/info", params={"key": case.key}, headers=ADMIN)
    alias: str | None = found.json()["info"]["key_alias"]
    return alias.replace(case.user_id, "ID") if alias is not None else None


async def found_by_alias(case: Case) -> list[int]:
    """Whether the key is found by its alias, and whether another key may have it."""
    alias = f"key of {case.user_id}"
    found = await case.ask("/key/unblock", key_alias=alias)
    made = await case.ask("/key/generate", user_id=case.user_id, key_alias=alias)
    if made == 200:
        await case.ask("/key/delete", key_aliases=[alias])
    return [found, made]


async def listed_by_team(case: Case) -> int:
    """How many keys of the user a list of the team's keys has."""
    query = {"user_id": case.user_id, "team_id": "red"}
    found: int = (await case.there.get("/key/list", params=query, headers=ADMIN)).json()["total_count"]
    return found


async def team_and_teams(case: Case) -> tuple[str | None, str | None]:
    """The `team_id` of the record, and the teams that the upstream is told of."""
    teams = (await case.chat()).json()["seen"]["headers"].get("x-llmweir-teams")
    return (await case.row())["team_id"], teams


async def teams_here_and_behind(case: Case) -> tuple[int, str | None]:
    """Whether a list of the team's users has the user, and the teams that the upstream is told of."""
    query = {"team": "red", "user_ids": case.user_id}
    found = (await case.there.get("/user/list", params=query, headers=ADMIN)).json()["total"]
    return found, (await case.chat()).json()["seen"]["headers"].get("x-llmweir-teams")


async def may_list_users(case: Case) -> int:
    """What the admin API answers the user who asks for all users."""
    return (await case.there.get("/user/list", headers={"authorization": f"Bearer {case.key}"})).status_code
