"""The routes of reports: live limits, and what was used day by day."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.admin.parts import a_key, a_user, done, problem
from tests.admin.serving import bearer
from tests.backends import Clock, on_valkey
from tests.engine.asking import an_ask, passes

from llmweir.admin import reports
from llmweir.admin.activity import ActivityMetadata, ActivityPage, DayActivity
from llmweir.admin.usage_shapes import binding_of
from llmweir.engine.asks import Settlement
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.limit_usage import LimitUsage
from llmweir.engine.store import Store
from llmweir.engine.users import Users

DAY_S = 86_400
TODAY = "2027-01-15"
EVER = {"start_date": "2020-01-01", "end_date": "2099-12-31"}


async def use(  # one settled request
    store: Store,
    user_id: str,
    model: str = "gpt-4o",
    *,
    tokens: tuple[int, int] = (0, 0),
    usd: int = 0,
    fails: bool = False,
) -> None:
    """Settle one request that used so much, in tokens and nano-dollars."""
    request_id = f"{user_id} {model} {tokens} {usd} {fails}"
    await passes(store, an_ask(request_id, user_id=user_id, model=model))
    await store.settle(
        Settlement(
            request_id=request_id,
            user_id=user_id,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cost_nanos=usd * 10**9,
            failed=fails,
        )
    )


def totals(content: dict[str, Any]) -> tuple[float, int, int]:
    metadata = content["metadata"]
    return metadata["total_spend"], metadata["total_tokens"], metadata["total_api_requests"]


@on_valkey
class TestUsage:
    async def test_every_limit_is_listed_with_what_is_used_of_it(
        self, api: httpx.AsyncClient, users: Users, store: Store
    ) -> None:
        header = await a_user(
            users, "ana", rpm_limit=10, tpm_limit=100, max_parallel_requests=4, max_budget=8, soft_budget=2,
            budget_duration="1d", model_rpm_limit={"gpt-4o": 5}, model_tpm_limit={"gpt-*": 200},
            model_max_budget={"gpt-4o": 16},
        )  # fmt: skip
        await use(store, "ana", tokens=(10, 20), usd=1)
        await passes(store, an_ask("held", user_id="ana", tokens=40, nanos=3 * 10**9))
        usage = done(await api.get("/user/usage", headers=header))
        day_ms = DAY_S * 1_000
        wanted = [
            ("rpm", None, 10, 2, 0, 8),
            ("tpm", None, 100, 70, 0, 30),
            ("parallel", None, 4, 1, 0, 3),
            ("budget", None, 8, 1, 3, 4),
            ("soft_budget", None, 2, 1, 3, 0),
            ("model_rpm", "gpt-4o", 5, 2, 0, 3),
            ("model_tpm", "gpt-*", 200, 70, 0, 130),
            ("model_budget", "gpt-4o", 16, 1, 3, 12),
        ]
        members = ("name", "model", "limit", "used", "reserved", "remaining")
        assert [tuple(limit[name] for name in members) for limit in usage["limits"]] == wanted
        resets_ms = {limit["name"]: limit["reset_ms"] for limit in usage["limits"]}
        assert (resets_ms["budget"], resets_ms["model_budget"], resets_ms["parallel"]) == (day_ms, day_ms, None)
        assert 0 < resets_ms["rpm"] <= 61_000
        assert (usage["user_id"], usage["binding"]) == ("ana", usage["limits"][1])

    async def test_reading_counts_nothing(self, api: httpx.AsyncClient, users: Users, store: Store) -> None:
        header = await a_user(users, "ana", rpm_limit=2)
        await use(store, "ana")
        first = done(await api.get("/user/usage", headers=header))
        assert done(await api.get("/user/usage", headers=header)) == first

    async def test_without_limits_nothing_binds(self, api: httpx.AsyncClient, users: Users) -> None:
        header = await a_user(users, "ana")
        assert done(await api.get("/user/usage", headers=header)) == {"user_id": "ana", "limits": [], "binding": None}

    async def test_the_own_limits_of_a_key_bind_only_who_presents_it(
        self, api: httpx.AsyncClient, users: Users, store: Store
    ) -> None:
        free = await a_user(users, "ana", rpm_limit=10)
        key = await a_key(users, "ana", rpm_limit=1, max_budget=2)
        await passes(store, an_ask("r", user_id="ana", key_hash=hash_key(key)))
        shown = done(await api.get("/user/usage", headers=bearer(key)))
        token = done(await api.get("/key/info", headers=bearer(key)))["key"]
        own, rpm, budget = shown["limits"]
        assert "key" not in own
        assert (rpm["key"], rpm["used"], rpm["remaining"], budget["key"], budget["limit"]) == (token, 1, 0, token, 2)
        assert shown["binding"] == rpm
        for header in (free, dict(api.headers)):
            asked = done(await api.get("/user/usage", params={"user_id": "ana"}, headers=header))
            assert (asked["limits"], asked["binding"]) == (shown["limits"], own)

    async def test_who_may_see_whose(self, api: httpx.AsyncClient, users: Users) -> None:
        await a_user(users, "ana", rpm_limit=1)
        for role, status in [("proxy_admin_viewer", 200), ("internal_user", 403), ("customer", 403)]:
            header = await a_user(users, role, user_role=role)
            assert done(await api.get("/user/usage", headers=header))["user_id"] == role
            other = await api.get("/user/usage", params={"user_id": "ana"}, headers=header)
            assert other.status_code == status
        assert problem(await api.get("/user/usage")) == (400, "user_id")
        assert problem(await api.get("/user/usage", params={"user_id": "nobody"})) == (404, "user_id")


@pytest.mark.parametrize(
    ("usages", "binding"),
    [
        pytest.param([], None, id="nothing is set"),
        pytest.param([LimitUsage("soft_budget", 1, 1)], None, id="a soft budget binds nobody"),
        pytest.param([LimitUsage("rpm", 10, 5), LimitUsage("tpm", 1000, 600)], 1, id="the smaller part is left"),
        pytest.param([LimitUsage("rpm", 10, 5), LimitUsage("budget", 10, 1, 5)], 1, id="what is reserved counts"),
        pytest.param([LimitUsage("rpm", 10, 10), LimitUsage("tpm", 10, 25)], 0, id="the first of two at their end"),
        pytest.param([LimitUsage("rpm", 10, 9), LimitUsage("parallel", 0, 0)], 1, id="a limit of 0 is at its end"),
        pytest.param([LimitUsage("rpm", 10, 0, key="k"), LimitUsage("rpm", 1, 1, key="j")], 0, id="another key's"),
    ],
)
def test_the_limit_nearest_to_its_end_binds(usages: list[LimitUsage], binding: int | None) -> None:
    assert binding_of(usages, "k") == (None if binding is None else usages[binding])


@on_valkey
class TestActivity:
    async def test_days_come_newest_first_with_their_models(
        self, api: httpx.AsyncClient, users: Users, store: Store, clock: Clock
    ) -> None:
        header = await a_user(users, "ana")
        await use(store, "ana", tokens=(100, 50), usd=2)
        await use(store, "ana", "claude", tokens=(1, 2), usd=1)
        clock.advance(seconds=2 * DAY_S)
        await use(store, "ana", tokens=(5, 5))
        await use(store, "ana", fails=True)
        content = done(await api.get("/user/daily/activity", params=EVER, headers=header))
        assert content.keys() == ActivityPage.__annotations__.keys()
        assert content["metadata"] == {
            "total_spend": 3,
            "total_prompt_tokens": 106,
            "total_completion_tokens": 57,
            "total_tokens": 163,
            "total_api_requests": 4,
            "total_successful_requests": 3,
            "total_failed_requests": 1,
            "page": 1,
            "total_pages": 1,
            "has_more": False,
        }
        assert content["metadata"].keys() == ActivityMetadata.__annotations__.keys()
        newest, oldest = content["results"]
        assert (newest["date"], oldest["date"]) == ("2027-01-17", TODAY)
        assert newest.keys() == DayActivity.__annotations__.keys()
        assert newest["metrics"] == {
            "spend": 0,
            "prompt_tokens": 5,
            "completion_tokens": 5,
            "total_tokens": 10,
            "api_requests": 2,
            "successful_requests": 1,
            "failed_requests": 1,
        }
        models = oldest["breakdown"]["models"]
        assert [(model, models[model]["metrics"]["spend"]) for model in models] == [("claude", 1), ("gpt-4o", 2)]
        assert (oldest["metrics"]["spend"], oldest["metrics"]["total_tokens"]) == (3, 153)

    @pytest.mark.parametrize(
        ("start_date", "end_date", "days"),
        [
            (TODAY, TODAY, 1),
            ("2027-01-16", "2027-01-16", 0),
            (TODAY, "2027-01-17", 2),
            ("2027-01-16", "2027-01-31", 1),
            ("0001-01-01", "9999-12-31", 2),
            ("2030-01-01", "2031-01-01", 0),
            ("1990-01-01", "1991-01-01", 0),
        ],
    )
    async def test_both_ends_of_a_range_are_in_it(
        self,
        api: httpx.AsyncClient,
        users: Users,
        store: Store,
        clock: Clock,
        start_date: str,
        end_date: str,
        days: int,
    ) -> None:
        await a_user(users, "ana")
        await use(store, "ana", tokens=(1, 0))
        clock.advance(seconds=2 * DAY_S)
        await use(store, "ana", tokens=(2, 0))
        query = {"user_id": "ana", "start_date": start_date, "end_date": end_date}
        content = done(await api.get("/user/daily/activity", params=query))
        assert (len(content["results"]), content["metadata"]["total_api_requests"]) == (days, days)

    async def test_pages_are_of_days_and_totals_of_all_of_them(
        self, api: httpx.AsyncClient, users: Users, store: Store, clock: Clock
    ) -> None:
        await a_user(users, "ana")
        for number in range(5):
            await use(store, "ana", tokens=(number, 0))
            clock.advance(seconds=DAY_S)
        query: dict[str, Any] = {**EVER, "user_id": "ana", "page_size": 2}
        pages = [done(await api.get("/user/daily/activity", params={**query, "page": page})) for page in (1, 2, 3, 4)]
        dates = [[result["date"][-2:] for result in page["results"]] for page in pages]
        assert dates == [["19", "18"], ["17", "16"], ["15"], []]
        assert [page["metadata"]["has_more"] for page in pages] == [True, True, False, False]
        assert {(*totals(page), page["metadata"]["total_pages"]) for page in pages} == {(0, 10, 5, 3)}

    async def test_a_model_is_counted_alone(self, api: httpx.AsyncClient, users: Users, store: Store) -> None:
        await a_user(users, "ana")
        await use(store, "ana", tokens=(1, 1), usd=1)
        await use(store, "ana", "claude", tokens=(2, 2), usd=2)
        query = {**EVER, "user_id": "ana"}
        content = done(await api.get("/user/daily/activity", params={**query, "model": "claude"}))
        assert totals(content) == (2, 4, 1)
        assert content["results"][0]["breakdown"]["models"].keys() == {"claude"}
        unheard_of = done(await api.get("/user/daily/activity", params={**query, "model": "unheard-of"}))
        assert (unheard_of["results"], totals(unheard_of)) == ([], (0, 0, 0))

    async def test_all_users_are_added_up_where_none_is_named(
        self, api: httpx.AsyncClient, users: Users, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reports, "_CHUNK_USERS", 2)
        viewer = await a_user(users, "viewer", user_role="proxy_admin_viewer")
        for number in range(5):
            await a_user(users, f"user {number}")
            await use(store, f"user {number}", tokens=(number, 1), usd=1)
        for header in (viewer, dict(api.headers)):
            content = done(await api.get("/user/daily/activity", params=EVER, headers=header))
            assert totals(content) == (5, 15, 5)
            assert len(content["results"]) == 1

    async def test_more_users_than_can_be_added_up_are_refused(
        self, api: httpx.AsyncClient, users: Users, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reports, "MAX_USER_DAYS", 90)
        for user_id in ("ana", "bob", "eve"):
            await a_user(users, user_id)
        month = {"start_date": "2027-01-01", "end_date": "2027-01-30"}
        assert done(await api.get("/user/daily/activity", params=month))["results"] == []
        assert problem(await api.get("/user/daily/activity", params=EVER)) == (422, "user_id")
        await a_user(users, "one too many")
        assert problem(await api.get("/user/daily/activity", params=month)) == (422, "user_id")
        assert done(await api.get("/user/daily/activity", params={**EVER, "user_id": "ana"}))["results"] == []

    async def test_a_deleted_user_is_still_reported(self, api: httpx.AsyncClient, users: Users, store: Store) -> None:
        await a_user(users, "ana")
        await use(store, "ana", tokens=(1, 1), usd=1)
        await users.delete(["ana"])
        assert totals(done(await api.get("/user/daily/activity", params={**EVER, "user_id": "ana"}))) == (1, 2, 1)

    async def test_who_may_see_whose(self, api: httpx.AsyncClient, users: Users) -> None:
        await a_user(users, "ana")
        rows = [("proxy_admin_viewer", 200, 200), ("internal_user", 200, 403), ("customer", 200, 403)]
        for role, own, other in rows:
            header = await a_user(users, role, user_role=role)
            asked = await api.get("/user/daily/activity", params=EVER, headers=header)
            named = await api.get("/user/daily/activity", params={**EVER, "user_id": "ana"}, headers=header)
            assert (asked.status_code, named.status_code) == (own, other), role

    @pytest.mark.parametrize(
        ("changes", "at"),
        [
            ({"start_date": ""}, [["query", "start_date"]]),
            ({"end_date": "2027-02-30"}, [["query", "end_date"]]),
            ({"start_date": "2027-1-1"}, [["query", "start_date"]]),
            ({"start_date": "1700000000"}, [["query", "start_date"]]),
            ({"start_date": "2027-01-01T00:00:00"}, [["query", "start_date"]]),
            ({"start_date": "yesterday", "end_date": "0000-01-01"}, [["query", "start_date"], ["query", "end_date"]]),
            ({"start_date": "2027-02-01", "end_date": "2027-01-01"}, [["query"]]),
            ({"page": 0}, [["query", "page"]]),
            ({"page_size": 1001}, [["query", "page_size"]]),
        ],
    )
    async def test_a_bad_parameter_is_named(
        self, api: httpx.AsyncClient, changes: dict[str, Any], at: list[Any]
    ) -> None:
        answer = await api.get("/user/daily/activity", params={**EVER, **changes})
        assert problem(answer) == (422, at)
