"""Every field of a user and of a key works: set on one gate, it binds the next request on the other; so when cleared.

The gates are two processes over one store. What is set, looked at and expected stands in `table.py`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.effects import page
from tests.effects.case import Case, beside_a_running_one, outcome
from tests.effects.gates import ADMIN, Weirs, two_gates
from tests.effects.table import KEY_ROWS, READ_ONLY_ROWS, READ_ONLY_TEST, ROWS, USER_ROWS, Of, Row
from tests.harness import empty as empty_store

from llmweir.key_records import KeyRegeneration, KeyUpdate, NewKey
from llmweir.record_fields import READ_ONLY
from llmweir.records import NewUser, UserUpdate

in_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def weirs(url_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Weirs]:
    """Give two gates that all tests share; each test has users of its own."""
    empty_store(url_of("valkey"))
    async with two_gates(url_of("valkey"), tmp_path_factory.mktemp("gates")) as weirs:
        yield weirs


def rows(of: Of) -> list[tuple[Of, Row]]:
    return [(of, row) for row in ROWS[of] if row.look is not None]


ALL = [pytest.param(of, row, id=f"{of}-{row.name}") for of in ("user", "key") for _, row in rows(of)]
CLEARED = [
    pytest.param(of, row, empty, id=f"{of}-{row.name}-{empty}")
    for of in ("user", "key")
    for _, row in rows(of)
    for empty in row.empties
]


def of_user(value: Any, user_id: str) -> Any:
    """The value with the user's id in it."""
    return value.replace("ID", user_id) if isinstance(value, str) else value


async def look(row: Row, case: Case) -> Any:
    assert row.look is not None
    return await row.look(case)


@in_one_loop
@pytest.mark.parametrize(("of", "row", "empty"), CLEARED)
async def test_a_field_that_is_set_binds_the_next_request_on_the_other_gate_until_it_is_cleared(
    weirs: Weirs, of: Of, row: Row, empty: Any
) -> None:
    case = Case(weirs, is_of_key=of == "key")
    await case.make(**{name: of_user(value, case.user_id) for name, value in row.beside.items()})
    assert await look(row, case) == row.free
    await case.change(**{row.field: of_user(row.value, case.user_id)})
    assert ("deprecation" in case.answer.headers) == (row.field in ("config", "team_id") and of == "user")
    assert await look(row, case) == row.holds
    case.turn()
    await case.change(**{row.field: empty})
    assert await look(row, case) == row.cleared


@in_one_loop
@pytest.mark.parametrize(("of", "row"), ALL)
async def test_a_field_that_is_set_from_the_start_binds_the_first_request(weirs: Weirs, of: Of, row: Row) -> None:
    case = Case(weirs, is_of_key=of == "key")
    fields = {**row.beside, row.field: row.value}
    await case.make(**{name: of_user(value, case.user_id) for name, value in fields.items()})
    assert await look(row, case) == row.holds


@in_one_loop
async def test_an_id_names_one_user_and_is_made_up_where_there_is_none(weirs: Weirs) -> None:
    case = Case(weirs)
    assert await case.ask("/user/update", user_id=case.user_id, rpm_limit=1) == 404
    await case.make()
    assert (await case.row())["user_id"] == case.user_id
    assert await case.ask("/user/new", user_id=case.user_id) == 409
    assert (await case.chat()).json()["seen"]["headers"]["x-llmweir-user-id"] == case.user_id
    for nobody in ({}, {"user_id": None}):
        made = (await case.here.post("/user/new", json=nobody, headers=ADMIN)).json()
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made["user_id"])
        seen = (await case.chat(key=made["key"])).json()["seen"]["headers"]
        assert seen["x-llmweir-user-id"] == made["user_id"]


@in_one_loop
async def test_what_is_read_only_shows_what_happens_and_cannot_be_sent(weirs: Weirs) -> None:
    case = Case(weirs)
    await case.make(max_budget=1, budget_duration="30d")
    first = await case.row()
    assert (first["reserved"], first["model_spend"]) == (0, {})
    await case.change(user_alias="Ana")
    changed = await case.row()
    assert changed["created_at"] == first["created_at"] <= first["updated_at"] < changed["updated_at"]
    assert changed["budget_reset_at"] == first["budget_reset_at"] > first["created_at"]
    reserved = []

    async def running(case: Case) -> None:
        reserved.append((await case.row())["reserved"])

    await beside_a_running_one(case, running)
    spent = await case.row()
    assert reserved[0] > 0
    assert (spent["reserved"], spent["model_spend"]) == (0, {"gpt-4o": spent["spend"]})
    for name in READ_ONLY:
        answer = await case.there.post("/user/update", json={"user_id": case.user_id, name: None}, headers=ADMIN)
        assert (answer.status_code, answer.json()["detail"][0]["type"]) == (422, "read_only")


@in_one_loop
async def test_a_key_of_ones_own_choice_lets_its_user_in_until_it_is_made_anew(weirs: Weirs) -> None:
    case = Case(weirs, is_of_key=True)
    chosen = f"sk-chosen-for-{case.user_id}"
    await case.make(key=chosen, rpm_limit=1000)
    assert (case.key, outcome(await case.chat())) == (chosen, "200")
    assert await case.ask("/key/generate", user_id=case.user_id, key=chosen) == 409
    for new_key in (f"sk-anew-for-{case.user_id}", None):
        path = f"/key/{case.key}/regenerate"
        made = (await case.here.post(path, json={"new_key": new_key}, headers=ADMIN)).json()
        assert outcome(await case.chat()) == "401 invalid_request_error invalid_api_key"
        assert (new_key or made["key"], made["rpm_limit"]) == (made["key"], 1000)
        case.key = made["key"]
        assert outcome(await case.chat()) == "200"


@in_one_loop
async def test_a_key_stays_with_its_user(weirs: Weirs) -> None:
    case, other = Case(weirs, is_of_key=True), Case(weirs)
    await case.make()
    await other.make()
    assert (await case.chat()).json()["seen"]["headers"]["x-llmweir-user-id"] == case.user_id
    assert await case.ask("/key/update", key=case.key, user_id=case.user_id) == 200
    assert await case.ask("/key/update", key=case.key, user_id=other.user_id) == 422
    assert await case.ask("/key/generate", user_id=f"{case.user_id}-unknown") == 404
    made = (await case.here.post("/key/generate", json={}, headers=ADMIN)).json()
    assert (await case.chat(key=made["key"])).json()["seen"]["headers"]["x-llmweir-user-id"] == made["user_id"]


@in_one_loop
async def test_what_one_gate_has_told_the_app_behind_is_never_told_once_the_other_has_changed_it(weirs: Weirs) -> None:
    case = Case(weirs)
    await case.make()
    for number in range(20):
        await case.change(metadata={"number": number})
        assert (await case.chat()).json()["seen"]["headers"]["x-llmweir-metadata"] == f'{{"number":{number}}}'
        case.turn()


def test_every_field_of_every_body_has_a_row() -> None:
    assert {row.field for row in USER_ROWS} == NewUser.model_fields.keys() == UserUpdate.model_fields.keys()
    of_keys = NewKey.model_fields.keys() | KeyUpdate.model_fields.keys() | KeyRegeneration.model_fields.keys()
    assert {row.field for row in KEY_ROWS} == of_keys
    assert {row.field for row in READ_ONLY_ROWS} == READ_ONLY


def test_a_row_has_a_look_or_a_test_of_its_own() -> None:
    for row in (*USER_ROWS, *KEY_ROWS):
        assert (row.look is None) == bool(row.test), row.name
        assert row.look is not None or inspect.iscoroutinefunction(globals()[row.test])
        assert row.look is None or row.holds != row.free, row.name
    assert inspect.iscoroutinefunction(globals()[READ_ONLY_TEST])


def test_the_page_of_the_docs_is_what_the_table_says() -> None:
    assert Path(page.PAGE).read_text() == page.text(), "python -m tests.effects writes it anew"
