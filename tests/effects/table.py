"""The one table of what every field does: the tests set, look and clear by it, and `docs/fields.md` is made from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tests.effects import case, looks
from tests.effects.case import FREE, Look
from tests.effects.looks import SPENT

BUSY = "429 requests rate_limit_exceeded"
MANY_TOKENS = "429 tokens rate_limit_exceeded"
NO_MODEL = "403 invalid_request_error model_not_allowed"


@dataclass(frozen=True)
class Row:
    """What a field does: `look` finds `free` before it is set, `holds` while it is, and `after` once it is cleared.

    In a text `ID` stands for the user's id. `beside` are other fields that the user, or the key, is made with. A field
    that no such row can show has instead the name of a test of its own.
    """

    field: str
    says: str
    value: Any = None
    look: Look | None = None
    holds: Any = None
    free: Any = None
    after: Any = None
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    shape: str = ""
    """Which of the shapes of the field's value this is about."""
    stays: bool = False
    """Whether null leaves as it is what the field did: it says what to do, not how things are to be."""
    test: str = ""

    @property
    def name(self) -> str:
        return f"{self.field}-{self.shape}" if self.shape else self.field

    @property
    def empties(self) -> list[Any]:
        """Every way to clear the field."""
        kinds: dict[type, list[Any]] = {list: [[]], dict: [{}], bool: [] if self.stays else [False]}
        return [None, *kinds.get(type(self.value), [])]

    @property
    def cleared(self) -> Any:
        """What `look` finds once the field is cleared."""
        if self.stays:
            return self.holds if self.after is None else self.after
        return self.free if self.after is None else self.after


USER_ROWS = (
    Row("user_id", "Names the user: one id, one user; made up where it is left out; it never changes.",
        test="test_an_id_names_one_user_and_is_made_up_where_there_is_none"),
    Row("user_email", "Finds the user, in any case; no other user may have it.",
        "ID@example.org", looks.found_by_email, [200, 409], [404, 200]),
    Row("password", "Kept as an argon2 hash alone; never shown, never logged.",
        "open sesame", looks.password_that_fits, holds=True),
    Row("user_alias", "Names the user in messages, and to the app behind.",
        "Ana", looks.name_in_a_refusal, "Ana, Ana", "the id, None"),
    Row("teams", "Told to the app behind; `/user/list?team=` finds the user by them.",
        ["red", "blue"], looks.teams_here_and_behind, (1, '["red","blue"]'), (0, None)),
    Row("send_invite_email", "Mails a link to a page that sets the password, once.",
        True, looks.link_in_the_mail, 200, beside={"user_email": "ID@example.org"}, after=None),
    Row("user_role", "`internal_user_viewer` may not call models.",
        "internal_user_viewer", case.asked, "403 invalid_request_error role_not_allowed", FREE, shape="viewer"),
    Row("user_role", "`proxy_admin` may use the whole admin API, and so each role what it may.",
        "proxy_admin", looks.may_list_users, 200, 403, shape="admin"),
    Row("user_role", "Told to the app behind.",
        "customer", case.upstream_saw("x-llmweir-user-role"), "customer", "internal_user", shape="customer"),
    Row("max_budget", "Refuses what would pass the amount, in USD.", 0.0003, case.second, SPENT, FREE),
    Row("max_budget", "Nothing at all may be spent.", 0, case.asked, SPENT, FREE, shape="0"),
    Row("budget_duration", "What is spent starts again from 0 at the end of each such period.",
        "1s", looks.spent_and_waited, FREE, SPENT, beside={"max_budget": 1}),
    Row("models", "Allows these models alone.", ["gpt-4o-mini"], case.asked, NO_MODEL, FREE),
    Row("models", "A trailing `*` matches a prefix.",
        ["gpt-4o-*", "claude*"], case.second_of_each, [NO_MODEL, FREE], [FREE, FREE], shape="prefix"),
    Row("models", "`no-default-models` allows none.",
        ["no-default-models"], case.second_of_each, [NO_MODEL, NO_MODEL], [FREE, FREE], shape="none"),
    Row("tpm_limit", "Refuses more tokens than this in any 60 s.", 60, case.second, MANY_TOKENS, FREE),
    Row("rpm_limit", "Refuses more requests than this in any 60 s.", 1, case.second, BUSY, FREE),
    Row("max_parallel_requests", "Refuses a request while this many run.",
        1, case.beside_a_running_one, "429 requests parallel_limit_exceeded", FREE),
    Row("model_rpm_limit", "The same as `rpm_limit`, for one model.",
        {"gpt-4o": 1}, case.second_of_each, [BUSY, FREE], [FREE, FREE]),
    Row("model_rpm_limit", "The longest prefix that matches counts.",
        {"gpt-*": 100, "gpt-4o-*": 1}, case.second_of_each, [FREE, BUSY], [FREE, FREE], shape="prefix"),
    Row("model_tpm_limit", "The same as `tpm_limit`, for one model.",
        {"gpt-4o": 60}, case.second_of_each, [MANY_TOKENS, FREE], [FREE, FREE]),
    Row("model_max_budget", "The same as `max_budget`, for one model.",
        {"gpt-4o": 0.0003}, case.second_of_each, [SPENT, FREE], [FREE, FREE]),
    Row("model_max_budget", "With a period of its own, at whose end that model's spend starts again from 0.",
        {"gpt-4o": {"budget_limit": 0.0003, "time_period": "2s"}}, looks.spent_of_a_model_and_waited,
        "200 after a while", "200 at once", shape="period"),
    Row("soft_budget", "Raises one alert a period once it is passed, by webhook and in the log; refuses nothing.",
        0.000001, looks.alerts_raised, 1, 0),
    Row("spend", "Sets what is spent in this period.",
        0.25, case.asked, SPENT, FREE, beside={"max_budget": 0.25}),
    Row("aliases", "The caller asks for the one name; limits, prices and the upstream see the other.",
        {"fast": "gpt-4o"}, looks.model_behind_a_name, "gpt-4o", "fast"),
    Row("allowed_cache_controls", "The body's `cache` may have no other members than these.",
        ["no-cache"], looks.two_cache_controls,
        [FREE, "403 invalid_request_error cache_control_not_allowed"], [FREE, FREE]),
    Row("blocked", "Refuses everything.", True, case.asked, "403 invalid_request_error user_blocked", FREE),
    Row("guardrails", "Told to the app behind.",
        ["pii"], case.upstream_saw("x-llmweir-guardrails"), '["pii"]'),
    Row("permissions", "Told to the app behind.",
        {"pii": False}, case.upstream_saw("x-llmweir-permissions"), '{"pii":false}'),
    Row("metadata", "Told to the app behind.",
        {"desk": 4}, case.upstream_saw("x-llmweir-metadata"), '{"desk":4}'),
    Row("config", "Deprecated: kept, returned, answered with a `Deprecation` header.",
        {"old": True}, case.reads("config"), {"old": True}, {}),
    Row("team_id", "Deprecated likewise; joins `teams`, and stays there.",
        "red", looks.team_and_teams, ("red", '["red"]'), (None, None), after=(None, '["red"]')),
    Row("auto_create_key", "Makes a key, shown once, where there is none yet, or `key_alias` or `duration` come too.",
        True, looks.key_just_made, FREE, beside={"auto_create_key": False}),
    Row("key_alias", "Names the key that the call makes, else the user's only key.",
        "key of ID", looks.alias_of_the_key, "key of ID", stays=True),
    Row("duration", "How long the key that the call makes, else the user's only key, is good from now on.",
        "1s", looks.until_the_key_ends, "401 invalid_request_error invalid_api_key", FREE, stays=True),
)  # fmt: skip

READ_ONLY_ROWS = (
    Row("reserved", "What requests in flight may yet cost, in USD."),
    Row("budget_reset_at", "When the period of `budget_duration` ends."),
    Row("created_at", "When the user was made."),
    Row("updated_at", "When the record was last changed."),
    Row("model_spend", "What is spent in this period by model, in USD."),
)
READ_ONLY_TEST = "test_what_is_read_only_shows_what_happens_and_cannot_be_sent"

KEY_ROWS = (
    Row("key", "The key itself, of one's own choice; made up where it is left out.",
        test="test_a_key_of_ones_own_choice_lets_its_user_in_until_it_is_made_anew"),
    Row("new_key", "The key in the place of another, of one's own choice; made up where it is left out.",
        test="test_a_key_of_ones_own_choice_lets_its_user_in_until_it_is_made_anew"),
    Row("user_id", "Whose key it is; it stays with that user. A user is made where it is left out.",
        test="test_a_key_stays_with_its_user"),
    Row("key_alias", "Finds the key; no other key may have it.",
        "key of ID", looks.found_by_alias, [200, 409], [404, 200]),
    Row("duration", "How long the key is good from now on.",
        "1s", looks.until_the_key_ends, "401 invalid_request_error invalid_api_key", FREE),
    Row("models", "Allows these models alone, of those that the user may call.",
        ["gpt-4o-*"], case.second_of_each, [NO_MODEL, FREE], [FREE, FREE]),
    Row("aliases", "As the user's, for this key.",
        {"fast": "gpt-4o"}, looks.model_behind_a_name, "gpt-4o", "fast"),
    Row("metadata", "Kept and returned.", {"desk": 4}, case.reads("metadata"), {"desk": 4}, {}),
    Row("team_id", "Kept and returned; `/key/list?team_id=` finds the key by it.", "red", looks.listed_by_team, 1, 0),
    Row("rpm_limit", "As the user's, for this key.", 1, case.second, BUSY, FREE),
    Row("tpm_limit", "As the user's, for this key.", 60, case.second, MANY_TOKENS, FREE),
    Row("max_parallel_requests", "As the user's, for this key.",
        1, case.beside_a_running_one, "429 requests parallel_limit_exceeded", FREE),
    Row("max_budget", "As the user's, for this key.", 0.0003, case.second, SPENT, FREE, beside={"rpm_limit": 1000}),
    Row("budget_duration", "As the user's, for this key.",
        "1s", looks.spent_and_waited, FREE, SPENT, beside={"max_budget": 1}),
    Row("spend", "Sets what is spent with this key.", 0.25, case.asked, SPENT, FREE, beside={"max_budget": 0.25}),
    Row("blocked", "Refuses everything.", True, case.asked, "403 invalid_request_error key_blocked", FREE),
)  # fmt: skip

Of = Literal["user", "key"]
ROWS: dict[Of, tuple[Row, ...]] = {"user": USER_ROWS, "key": KEY_ROWS}
