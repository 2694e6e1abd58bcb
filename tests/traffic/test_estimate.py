"""What is held for a request, and what is learned from its answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmweir.pricing import Rates
from llmweir.traffic.estimate import Estimator, Hold, Reserve
from llmweir.traffic.formats.base import RequestFacts
from llmweir.usage import Usage

RATES = Rates(input=2_500_000, output=10_000_000)
"""2.5 and 10 USD per million tokens, in pico-dollars."""
KNOWN = Rates(input=2_500_000, output=10_000_000, max_output_tokens=4096)


def hold(
    reserve: Reserve,
    *,
    rates: Rates | None = RATES,
    free: bool = False,
    estimator: Estimator | None = None,
    **facts: int,
) -> Hold:
    estimator = estimator or Estimator(reserve, 1024)
    return estimator.hold(RequestFacts("gpt-4o", **facts), "ann", "gpt-4o", rates, free)  # type: ignore[arg-type]


def taught(reserve: Reserve, *outputs: int, answers: int = 1) -> Estimator:
    estimator = Estimator(reserve, 1024)
    for output in outputs:
        estimator.learn(RequestFacts("gpt-4o", answers=answers), "ann", "gpt-4o", Usage(output_tokens=output))
    return estimator


OUTPUTS: dict[str, tuple[Hold, int]] = {
    "expected, nothing known": (hold("expected"), 1024),
    "expected, the caller's bound is smaller": (hold("expected", max_output_tokens=10), 10),
    "expected, the caller's bound is larger": (hold("expected", max_output_tokens=9000), 1024),
    "expected, learned": (hold("expected", estimator=taught("expected", 7, 40, 12)), 40),
    "expected, learned, the bound is smaller": (
        hold("expected", estimator=taught("expected", 40), max_output_tokens=9), 9),
    "expected, learned, of several answers each": (
        hold("expected", estimator=taught("expected", 90, answers=3), answers=2), 60),
    "expected, several answers": (hold("expected", answers=3), 3072),
    "expected, several bounded answers": (hold("expected", answers=3, max_output_tokens=10), 30),
    "expected, a bound of nothing": (hold("expected", max_output_tokens=0), 0),
    "max, the caller's bound": (hold("max", max_output_tokens=9000), 9000),
    "max, the model's": (hold("max", rates=KNOWN), 4096),
    "max, the caller's before the model's": (hold("max", rates=KNOWN, max_output_tokens=5), 5),
    "max, neither known": (hold("max"), 1024),
    "max, no price": (hold("max", rates=None), 1024),
    "max, several answers": (hold("max", answers=4, max_output_tokens=100), 400),
    "max does not learn": (hold("max", estimator=taught("max", 3)), 1024),
    "none": (hold("none", max_output_tokens=9000, answers=5), 0),
    "output is free": (hold("expected", free=True, max_output_tokens=9000), 0),
    "more than anybody answers": (hold("max", answers=10**6, max_output_tokens=10**9), 10**9),
}  # fmt: skip


@pytest.mark.parametrize(("held", "output_tokens"), OUTPUTS.values(), ids=OUTPUTS)
def test_the_output_held_follows_the_setting(held: Hold, output_tokens: int) -> None:
    assert held.hold_tokens - held.input_tokens == output_tokens


ASKED: dict[str, tuple[Hold, int]] = {
    "no bound": (hold("expected"), 1),
    "many answers without a bound": (hold("expected", answers=10**6), 10**6),
    "a bound": (hold("expected", max_output_tokens=9000), 9000),
    "a bound of each answer": (hold("max", max_output_tokens=9000, answers=2), 18_000),
    "with output not counted": (hold("none", max_output_tokens=9000), 0),
    "output is free": (hold("max", free=True, max_output_tokens=9000), 0),
}


@pytest.mark.parametrize(("held", "output_tokens"), ASKED.values(), ids=ASKED)
def test_what_must_fit_under_a_limit_itself_is_what_the_caller_says(held: Hold, output_tokens: int) -> None:
    assert held.asked_tokens - held.input_tokens == output_tokens


def test_input_is_a_quarter_of_its_bytes_and_media_at_their_allowance() -> None:
    assert hold("none", text_bytes=400, media_tokens=1105).input_tokens == 1206
    assert hold("none").input_tokens == 1


MONEY: dict[str, tuple[Hold, int, int]] = {
    "expected": (hold("expected", text_bytes=396, max_output_tokens=50), 100 * 2500, 100 * 2500 + 50 * 10_000),
    "max": (hold("max", text_bytes=396, max_output_tokens=50), 750_000, 750_000),
    "none": (hold("none", text_bytes=396, max_output_tokens=50), 250_000, 250_000),
    "no price": (hold("max", rates=None, max_output_tokens=50), 0, -1),
    "free": (hold("max", rates=Rates(), max_output_tokens=50), 0, 0),
}


@pytest.mark.parametrize(("held", "asked", "reserved"), MONEY.values(), ids=MONEY)
def test_money_is_held_at_the_price_of_the_model(held: Hold, asked: int, reserved: int) -> None:
    assert (held.asked_nanos, held.hold_nanos) == (asked, reserved)


def test_twenty_answers_are_remembered_and_the_largest_of_them_is_expected() -> None:
    estimator = taught("expected", 500, *[20] * 19)
    assert estimator._output_tokens(RequestFacts("gpt-4o"), "ann", "gpt-4o", None) == 500
    estimator.learn(RequestFacts("gpt-4o"), "ann", "gpt-4o", Usage(output_tokens=20))
    assert estimator._output_tokens(RequestFacts("gpt-4o"), "ann", "gpt-4o", None) == 20


def test_an_answer_without_output_teaches_nothing_of_outputs() -> None:
    estimator = taught("expected", 0)
    assert estimator._output_tokens(RequestFacts("gpt-4o"), "ann", "gpt-4o", None) == 1024


def test_what_is_learned_of_a_caller_and_a_model_holds_for_these_alone() -> None:
    estimator = taught("expected", 40)
    for user_id, model in (("bob", "gpt-4o"), ("ann", "gpt-4o-mini")):
        assert estimator._output_tokens(RequestFacts(model), user_id, model, None) == 1024


def test_the_ratio_of_tokens_to_bytes_moves_towards_what_is_seen() -> None:
    estimator = Estimator("none", 1)
    facts = RequestFacts("m", text_bytes=1000, media_tokens=100)
    for _ in range(200):
        estimator.learn(facts, "ann", "m", Usage(input_tokens=600))
    assert estimator.hold(facts, "ann", "m", None, False).input_tokens == pytest.approx(601, abs=2)
    assert estimator.tokens_of(1000, "m") == pytest.approx(500, abs=2)
    assert estimator.tokens_of(1000, "another") == 250


NOTHING_LEARNED = {
    "no text": (RequestFacts("m", text_bytes=0), Usage(input_tokens=50)),
    "all of it media": (RequestFacts("m", text_bytes=10, media_tokens=50), Usage(input_tokens=50)),
}


@pytest.mark.parametrize(("facts", "usage"), NOTHING_LEARNED.values(), ids=NOTHING_LEARNED)
def test_a_ratio_is_learned_from_text_alone(facts: RequestFacts, usage: Usage) -> None:
    estimator = Estimator("none", 1)
    estimator.learn(facts, "ann", "m", usage)
    assert estimator.tokens_of(1000, "m") == 250


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_no_usage_however_odd_moves_the_ratio_out_of_its_bounds(text_bytes: int, input_tokens: int) -> None:
    estimator = Estimator("none", 1)
    for _ in range(50):
        estimator.learn(RequestFacts("m", text_bytes=text_bytes), "ann", "m", Usage(input_tokens=input_tokens))
    assert 20 <= estimator.tokens_of(1000, "m") <= 2000


TEXTS = {"none": (0, 0), "a byte": (1, 1), "four": (4, 1), "five": (5, 2)}


@pytest.mark.parametrize(("text_bytes", "tokens"), TEXTS.values(), ids=TEXTS)
def test_text_of_unknown_usage_is_rounded_up(text_bytes: int, tokens: int) -> None:
    assert Estimator("none", 1).tokens_of(text_bytes, "m") == tokens
