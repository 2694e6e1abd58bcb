"""Prices: exact to the nano-dollar, equal to the catalogue's own arithmetic, never silently zero."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from math import ceil
from pathlib import Path

import genai_prices
import pytest
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    Tier,
    TieredPrices,
)
from hypothesis import given
from hypothesis import strategies as st

from llmweir.errors import InvalidValueError
from llmweir.pricing import PriceBook, Rates, catalogue_rates, read_price_file
from llmweir.usage import Usage

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@dataclass
class Clock:
    now_s: float = NOW.timestamp()

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook(clock=Clock())


USAGES = {
    "nothing": Usage(),
    "one token each": Usage(input_tokens=1, output_tokens=1),
    "plain": Usage(input_tokens=1_234, output_tokens=567),
    "input only": Usage(input_tokens=98_765),
    "cached": Usage(input_tokens=10_001, output_tokens=333, cached_input_tokens=9_001),
    "cache written": Usage(
        input_tokens=10_001, output_tokens=3, cached_input_tokens=7, cache_write_tokens=777, cache_write_1h_tokens=111
    ),
    "reasoning": Usage(input_tokens=100, output_tokens=5_000, reasoning_tokens=4_321),
    "audio": Usage(input_tokens=1_000, output_tokens=900, input_audio_tokens=800, output_audio_tokens=700),
    "at the tier": Usage(input_tokens=200_000, output_tokens=100, cached_input_tokens=5),
    "over the tier": Usage(input_tokens=200_001, output_tokens=100, cached_input_tokens=5),
    "far over the tiers": Usage(input_tokens=900_000, output_tokens=100),
}

MODELS = [
    ("gpt-4o", "openai"),
    ("gpt-4o-mini", "openai"),
    ("gpt-4.1", "openai"),
    ("gpt-5", "openai"),
    ("o3", "openai"),
    ("gpt-4o-audio-preview", "openai"),
    ("claude-sonnet-4-5", "anthropic"),
    ("claude-3-5-haiku-latest", "anthropic"),
    ("claude-opus-4-1", "anthropic"),
    ("gemini-2.5-pro", "google"),
    ("gemini-2.5-flash", "google"),
    ("gemini-2.0-flash", "google"),
    ("mistral-large-latest", "mistral"),
    ("deepseek-chat", "deepseek"),
    ("grok-3", "x-ai"),
    ("sonar", "perplexity"),
    ("text-embedding-3-small", "openai"),
]


@pytest.mark.parametrize("usage", USAGES.values(), ids=USAGES.keys())
@pytest.mark.parametrize(("model", "provider"), MODELS, ids=[model for model, _ in MODELS])
def test_the_cost_is_the_catalogues_own_rounded_up_to_a_nano_dollar(
    model: str, provider: str, usage: Usage, book: PriceBook
) -> None:
    catalogue_usage = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        cache_audio_read_tokens=0,
        output_audio_tokens=usage.output_audio_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )
    theirs = genai_prices.calc_price(catalogue_usage, model, provider_id=provider, genai_request_timestamp=NOW)
    rates = book.rates(model)
    assert rates is not None
    assert rates.cost_nanos(usage) == ceil(Fraction(theirs.total_price) * 10**9)


@given(
    st.tuples(*[st.integers(0, 10**9)] * 9),
    st.tuples(*[st.integers(0, 2_000_000)] * 7),
)
def test_the_cost_is_exact_for_any_rates_and_any_usage(prices: tuple[int, ...], parts: tuple[int, ...]) -> None:
    text_in, cached, write, write_1h, audio_in, text_out, reasoning = parts
    rates = Rates(
        input=prices[0],
        cached_input=prices[1],
        cache_write=prices[2],
        cache_write_1h=prices[3],
        input_audio=prices[4],
        output=prices[5],
        reasoning=prices[6],
        output_audio=prices[7],
        request=prices[8],
    )
    usage = Usage(
        input_tokens=text_in + cached + write + write_1h + audio_in,
        output_tokens=text_out + reasoning,
        cached_input_tokens=cached,
        cache_write_tokens=write + write_1h,
        cache_write_1h_tokens=write_1h,
        input_audio_tokens=audio_in,
        reasoning_tokens=reasoning,
    )
    picos = prices[8] + sum(rate * tokens for rate, tokens in zip(prices, parts, strict=False))
    assert rates.cost_nanos(usage) == ceil(Fraction(picos, 1000))


@given(st.tuples(*[st.integers(0, 10**6)] * 8))
def test_no_report_however_contradictory_costs_less_than_its_parts(tokens: tuple[int, ...]) -> None:
    rates = Rates(input=9, cached_input=1, cache_write=2, cache_write_1h=3, input_audio=1, output=9, reasoning=1)
    usage = Usage(
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        cached_input_tokens=tokens[2],
        cache_write_tokens=tokens[3],
        cache_write_1h_tokens=tokens[4],
        input_audio_tokens=tokens[5],
        reasoning_tokens=tokens[6],
        output_audio_tokens=tokens[7],
    )
    parts_picos = tokens[2] + 2 * max(tokens[3], tokens[4]) + tokens[4] + tokens[5] + tokens[6]
    assert rates.cost_nanos(usage) * 1000 >= parts_picos


TIERED = Rates(input=1_000, output=2_000, tiers=((10, Rates(input=3_000, output=4_000)), (20, Rates(input=5_000))))


@pytest.mark.parametrize(
    ("input_tokens", "nanos"),
    [
        pytest.param(10, 10 * 1 + 2, id="at the start of a tier the tier before holds"),
        pytest.param(11, 11 * 3 + 4, id="past it all tokens cost the tier's rate"),
        pytest.param(21, 21 * 5, id="the highest tier wins"),
    ],
)
def test_a_tier_holds_for_all_tokens_past_its_start(input_tokens: int, nanos: int) -> None:
    assert TIERED.cost_nanos(Usage(input_tokens=input_tokens, output_tokens=1)) == nanos
    assert TIERED.holds_nanos(input_tokens, 0, 1)[1] == nanos


def test_a_hold_is_rounded_up_once_and_covers_the_dearer_of_answer_and_reasoning() -> None:
    rates = Rates(input=1, output=1, reasoning=2, request=1_000)
    assert rates.holds_nanos(0, 0, 0)[0] == 1
    assert rates.holds_nanos(1, 0, 0)[0] == 2
    assert rates.holds_nanos(500, 250, 0)[0] == 2


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        pytest.param("openai/gpt-4o", "gpt-4o", id="provider and model"),
        pytest.param("GPT-4o", "gpt-4o", id="other case"),
        pytest.param("azure/gpt-4o", "gpt-4o", id="a provider that sells another's model"),
        pytest.param("models/gemini-2.5-pro", "gemini-2.5-pro", id="google's prefix"),
        pytest.param("my-router/gpt-4o", "gpt-4o", id="unknown provider"),
        pytest.param("my-router/openai/gpt-4o", "gpt-4o", id="unknown provider before a known one"),
        pytest.param("groq/gpt-4o", "gpt-4o", id="a provider that does not know the model"),
    ],
)
def test_a_model_is_found_under_the_names_it_goes_by(name: str, same_as: str, book: PriceBook) -> None:
    assert book.rates(same_as) is not None
    assert book.rates(name) == book.rates(same_as)


def test_the_provider_in_a_name_sets_the_price(book: PriceBook) -> None:
    novita = book.rates("novita/deepseek/deepseek-r1")
    assert novita is not None
    assert novita != book.rates("deepseek/deepseek-r1")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("no-such-model", id="unknown"),
        pytest.param("", id="empty"),
        pytest.param("/", id="only a slash"),
        pytest.param("a/b/c/d/gpt-4o", id="more parts than any name has"),
        pytest.param("groq/whisper-large-v3", id="priced by the hour of audio"),
        pytest.param("mistral/mistral-ocr-2505", id="priced by the page"),
        pytest.param("gpt-4o" * 50, id="absurdly long"),
    ],
)
def test_what_cannot_be_metered_has_no_price_unless_it_may_be_free(name: str, book: PriceBook) -> None:
    assert book.rates(name) is None
    assert PriceBook(unpriced="free").rates(name) == Rates()


@pytest.mark.parametrize("name", ["omni-moderation-latest", "azure/mai-ds-r1:free"])
def test_a_model_that_says_so_is_free(name: str, book: PriceBook) -> None:
    assert book.rates(name) == Rates()


def test_an_empty_price_is_not_taken_for_free() -> None:
    entry = ModelInfo(id="copilot-thing", match=ClauseEquals("copilot-thing"), prices=ModelPrice())
    assert catalogue_rates(entry, NOW) is None


def test_a_part_without_a_price_costs_what_its_whole_costs() -> None:
    prices = ModelPrice(
        input_mtok=TieredPrices(base=Decimal(1), tiers=[Tier(start=100, price=Decimal(2))]),
        output_mtok=Decimal("0.0000001"),
        cache_write_mtok=Decimal(3),
        requests_kcount=Decimal(5),
    )
    entry = ModelInfo(id="x", match=ClauseEquals("x"), prices=prices)
    low = Rates(
        input=10**6,
        cached_input=10**6,
        cache_write=3 * 10**6,
        cache_write_1h=3 * 10**6,
        input_audio=10**6,
        output=1,
        reasoning=1,
        output_audio=1,
        request=5 * 10**9,
    )
    rates = catalogue_rates(entry, NOW)
    assert rates is not None
    assert rates.for_input(100) == rates
    assert (rates.input, rates.cached_input, rates.request) == (low.input, low.cached_input, low.request)
    assert (rates.cache_write, rates.cache_write_1h, rates.output) == (low.cache_write, low.cache_write_1h, low.output)
    assert (rates.for_input(101).input, rates.for_input(101).cached_input) == (2 * 10**6, 2 * 10**6)


def test_output_of_a_kind_no_report_tells_apart_costs_the_dearest_rate(book: PriceBook) -> None:
    rates = book.rates("gemini-2.5-flash-image")
    assert rates is not None
    assert rates.output == 30 * 10**6


def test_a_price_that_changes_is_looked_up_again_within_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = ModelPrice(input_mtok=Decimal(1)), ModelPrice(input_mtok=Decimal(2))
    start = StartDateConstraint(start_date=datetime(2026, 11, 2, tzinfo=UTC).date())
    changing = ModelInfo(
        id="m",
        match=ClauseEquals("m"),
        prices=[ConditionalPrice(prices=before), ConditionalPrice(start, prices=after)],
    )
    monkeypatch.setattr("llmweir.pricing._catalogue_entries", lambda _name, _providers: [changing])
    clock = Clock(datetime(2026, 11, 1, 23, 55, tzinfo=UTC).timestamp())
    book = PriceBook(clock=clock)

    def input_rate() -> int:
        rates = book.rates("m")
        assert rates is not None
        return rates.input

    assert input_rate() == 10**6
    clock.now_s += 599
    assert input_rate() == 10**6
    clock.now_s += 1
    assert input_rate() == 2 * 10**6


def test_the_cache_of_names_is_bounded_and_drops_the_one_unused_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def nothing(name: str, _providers: object) -> list[ModelInfo]:
        asked.append(name)
        return []

    monkeypatch.setattr("llmweir.pricing._catalogue_entries", nothing)
    book = PriceBook()
    for index in range(4096):
        book.rates(f"m{index}")
    book.rates("m0")
    book.rates("one-more")
    asked.clear()
    book.rates("m0")
    assert asked == []
    book.rates("m1")
    assert asked == ["m1"]


JSON_FILE = """{
  "gpt-4o": {"input": 2.5, "cached_input": 1.25, "output": 10.0, "max_output_tokens": 16384},
  "gpt-*": {"input": 0.1, "output": 0.2, "request": 0.005},
  "gpt-4*": {"input": 1, "output": 2, "cache_write": 3}
}"""
TOML_FILE = """
gpt-4o = {input = 2.5, cached_input = 1.25, output = 10.0, max_output_tokens = 16384}
"gpt-*" = {input = 0.1, output = 0.2, request = 0.005}
"gpt-4*" = {input = 1, output = 2, cache_write = 3}
"""


@pytest.fixture(params=["json", "toml"])
def price_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"prices.{request.param}"
    path.write_text(JSON_FILE if request.param == "json" else TOML_FILE)
    return path


def test_the_price_file_wins_over_the_catalogue_and_its_longest_match_wins(price_file: Path) -> None:
    book = PriceBook(price_file)
    exact, longer, shorter = book.rates("gpt-4o"), book.rates("gpt-4.1"), book.rates("gpt-" + "x" * 300)
    assert exact == Rates(
        input=2_500_000,
        cached_input=1_250_000,
        cache_write=2_500_000,
        cache_write_1h=2_500_000,
        input_audio=2_500_000,
        output=10_000_000,
        reasoning=10_000_000,
        output_audio=10_000_000,
        max_output_tokens=16_384,
    )
    assert longer is not None
    assert (longer.input, longer.cached_input, longer.cache_write_1h) == (10**6, 10**6, 3 * 10**6)
    assert shorter is not None
    assert (shorter.input, shorter.request) == (100_000, 5 * 10**9)
    assert book.rates("claude-sonnet-4-5") == PriceBook().rates("claude-sonnet-4-5")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param({"input": 1}, "output: Field required", id="no output"),
        pytest.param({"input": -1, "output": 1}, "input: Input should be greater than or equal to 0", id="negative"),
        pytest.param({"input": "1", "output": 1}, "input: Value error, should be a number", id="text"),
        pytest.param({"input": True, "output": 1}, "input: Value error, should be a number", id="boolean"),
        pytest.param({"input": float("nan"), "output": 1}, "should be a number", id="not a number"),
        pytest.param({"input": 1, "output": 1, "outptu": 1}, "outptu: Extra inputs", id="unknown member"),
        pytest.param({"input": 1, "output": 1, "max_output_tokens": 1.5}, "max_output_tokens", id="half a token"),
        pytest.param(3, "the entry:", id="not an object"),
    ],
)
def test_a_wrong_entry_is_refused_with_file_and_name(entry: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"gpt-4o": entry}))
    with pytest.raises(InvalidValueError) as caught:
        PriceBook(path)
    assert str(path) in str(caught.value)
    assert "entry 'gpt-4o'" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "cannot be read", id="not json"),
        pytest.param("[]", "should hold an object", id="not an object"),
        pytest.param('{"a": {}, "a": {}}', "twice", id="the same name twice"),
        pytest.param('{"a*b": {"input": 1, "output": 1}}', "only at its end", id="star in the middle"),
        pytest.param('{"": {"input": 1, "output": 1}}', "a name", id="no name"),
    ],
)
def test_a_file_that_is_no_price_list_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(InvalidValueError, match=message):
        read_price_file(path)


def test_a_price_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="cannot be read"):
        PriceBook(tmp_path / "gone.json")
