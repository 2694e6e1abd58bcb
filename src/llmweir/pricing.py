"""What a request costs: integer rates per model, from a price file and the catalogue of genai-prices."""

from __future__ import annotations

import json
import time
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from genai_prices.data_snapshot import find_provider_by_id, get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from llmweir.errors import InvalidValueError
from llmweir.usage import Usage

_PICOS_PER_NANO = 1_000
_MOST_NANOS = 9 * 10**15
"""More than any budget, and the most that the scripts can count exactly."""
_PICOS_PER_USD = 10**12
_MTOK = 10**6
_CACHE_SIZE = 4096
_LONGEST_CACHED_NAME = 256
_MOST_NAME_PARTS = 4
_CHANGING_PRICE_TTL_S = 600.0


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Prices of one model in whole pico-dollars (1e-12 USD), per token, and `request` per request.

    `tiers` holds the rates of long requests: of those whose start is below the request's input tokens the last one
    applies, to all of its tokens. `max_output_tokens` is the most the model ever answers, where that is known.
    """

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    input_audio: int = 0
    output: int = 0
    reasoning: int = 0
    output_audio: int = 0
    request: int = 0
    tiers: tuple[tuple[int, Rates], ...] = ()
    max_output_tokens: int | None = None

    def cost_nanos(self, usage: Usage) -> int:
        """What `usage` costs in nano-dollars, exact and then rounded up once.

        A part that a provider reports as larger than its total is charged in full, and nothing is ever negative.
        """
        return _flat_cost_nanos(self.for_input(usage.input_tokens) if self.tiers else self, usage)

    def holds_nanos(self, input_tokens: int, least_output_tokens: int, output_tokens: int) -> tuple[int, int]:
        """What to ask at least, and what to hold, for a request of this size in nano-dollars, each rounded up.

        Reasoning is not known beforehand, so output counts as the dearer of the two.
        """
        rates = self.for_input(input_tokens) if self.tiers else self
        before = rates.request + input_tokens * rates.input
        each = max(rates.reasoning, rates.output)
        least = -(-(before + least_output_tokens * each) // _PICOS_PER_NANO)
        most = -(-(before + output_tokens * each) // _PICOS_PER_NANO)
        return (min(_MOST_NANOS, least)), (min(_MOST_NANOS, most))

    def for_input(self, input_tokens: int) -> Rates:
        """The rates that hold for a request of so many input tokens."""
        applicable = self
        for start_tokens, rates in self.tiers:
            if input_tokens <= start_tokens:
                break
            applicable = rates
        return applicable


def _flat_cost_nanos(rates: Rates, usage: Usage) -> int:
    text_in = usage.input_tokens
    text_out = usage.output_tokens
    picos = rates.request
    if cached := usage.cached_input_tokens:
        text_in -= cached
        picos += cached * rates.cached_input
    written_1h = usage.cache_write_1h_tokens
    if written := max(usage.cache_write_tokens, written_1h):
        text_in -= written
        picos += written_1h * rates.cache_write_1h + (written - written_1h) * rates.cache_write
    if audio_in := usage.input_audio_tokens:
        text_in -= audio_in
        picos += audio_in * rates.input_audio
    if reasoning := usage.reasoning_tokens:
        text_out -= reasoning
        picos += reasoning * rates.reasoning
    if audio_out := usage.output_audio_tokens:
        text_out -= audio_out
        picos += audio_out * rates.output_audio
    if text_in > 0:
        picos += text_in * rates.input
    if text_out > 0:
        picos += text_out * rates.output
    nanos = -(-picos // _PICOS_PER_NANO)
    return min(_MOST_NANOS, nanos)


class PriceBook:
    """Finds the rates of a model: in the price file first, then in the catalogue.

    `unpriced` says what a model without a price gets: `refuse` None, `free` rates of zero. Prices that change with
    the date or the time of day are looked up again after ten minutes at most. `clock` gives seconds since the epoch.
    Raises `InvalidValueError` where the price file cannot be read.
    """

    def __init__(
        self,
        price_file: Path | None = None,
        unpriced: Literal["refuse", "free"] = "refuse",
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        own_rates = read_price_file(price_file) if price_file is not None else {}
        self._exact = {name: rates for name, rates in own_rates.items() if not name.endswith("*")}
        prefixes = [(name[:-1], rates) for name, rates in own_rates.items() if name.endswith("*")]
        self._prefixes = sorted(prefixes, key=lambda prefix: len(prefix[0]), reverse=True)
        self._providers = get_snapshot().providers
        self._unpriced = Rates() if unpriced == "free" else None
        self._clock = clock
        self._cache: OrderedDict[str, tuple[Rates | None, float | None]] = OrderedDict()

    def rates(self, model: str) -> Rates | None:
        """The rates of `model`, or None where it has no price."""
        cached = self._cache.get(model)
        if cached is None:
            return self._look_up(model)
        rates, expires_s = cached
        if expires_s is not None and self._clock() >= expires_s:
            return self._look_up(model)
        self._cache.move_to_end(model)
        return rates

    def _look_up(self, model: str) -> Rates | None:
        own = self._own_rates(model)
        if len(model) > _LONGEST_CACHED_NAME:
            return own or self._unpriced
        changing = False
        now_s = self._clock()
        if own is None:
            own, changing = self._catalogue_rates(model, datetime.fromtimestamp(now_s, UTC))
        rates = own or self._unpriced
        self._cache[model] = (rates, now_s + _CHANGING_PRICE_TTL_S if changing else None)
        self._cache.move_to_end(model)
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return rates

    def _own_rates(self, model: str) -> Rates | None:
        if (exact := self._exact.get(model)) is not None:
            return exact
        return next((rates for prefix, rates in self._prefixes if model.startswith(prefix)), None)

    def _catalogue_rates(self, model: str, now: datetime) -> tuple[Rates | None, bool]:
        """The first priced entry under any reading of the name, and whether its price changes with time."""
        for entry in _catalogue_entries(model.lower(), self._providers):
            rates = catalogue_rates(entry, now)
            if rates is not None:
                return rates, not isinstance(entry.prices, ModelPrice)
        return None, False


def _catalogue_entries(name: str, providers: list[Provider]) -> Iterator[ModelInfo]:
    """What `name` may mean, the likeliest first: its first part a provider, the whole a model, the rest likewise."""
    for _ in range(_MOST_NAME_PARTS):
        head, _, rest = name.partition("/")
        provider = find_provider_by_id(providers, head) if rest else None
        readings = [(provider, rest)] if provider is not None else []
        readings += [(maker, name) for maker in _makers(name, providers)]
        for owner, model in readings:
            if (entry := owner.find_model(model, all_providers=providers)) is not None:
                yield entry
        if not rest:
            return
        name = rest


def _makers(name: str, providers: list[Provider]) -> Iterator[Provider]:
    """Whoever claims `name` by its form, else those whose model names are theirs alone but follow no form."""
    owner = next((p for p in providers if p.model_match is not None and p.model_match.is_match(name)), None)
    if owner is not None:
        yield owner
    else:
        yield from (p for p in providers if p.id in {"openai", "cohere", "google", "perplexity"})


def catalogue_rates(entry: ModelInfo, now: datetime) -> Rates | None:
    """The rates of a catalogue entry at the time `now`, or None where it has none that this library can meter.

    Output of a kind that no usage report tells apart (images, video) is charged at the dearest rate of the entry's
    output. An entry without any price is free only if its name says so too: some stand for prices not known.
    """
    prices = {name: price for name, price in vars(entry.get_prices(now)).items() if price is not None}
    if not prices:
        return Rates() if entry.id.endswith(":free") or "moderation" in entry.id else None
    if prices.keys().isdisjoint(("input_mtok", "output_mtok", "requests_kcount")):
        return None
    tiered = [price for price in prices.values() if isinstance(price, TieredPrices)]
    starts = sorted({tier.start for price in tiered for tier in price.tiers})
    tiers = tuple((start, _rates(_catalogue_usd(prices, start + 1))) for start in starts)
    return msgspec.structs.replace(_rates(_catalogue_usd(prices, 0)), tiers=tiers)


def _catalogue_usd(prices: Mapping[str, Decimal | TieredPrices], input_tokens: int) -> dict[str, Decimal]:
    """The prices under our own names, as they are for a request of so many input tokens."""

    def at_size(price: Decimal | TieredPrices) -> Decimal:
        if isinstance(price, TieredPrices):
            return next((tier.price for tier in reversed(price.tiers) if input_tokens > tier.start), price.base)
        return price

    usd = {name: at_size(price) for name, price in prices.items()}
    outputs = [usd[name] for name in ("output_mtok", "output_image_mtok", "output_video_mtok") if name in usd]
    ours = {name: usd[theirs] for name, theirs in _catalogue_names().items() if theirs in usd}
    return ours | {"output": max(outputs, default=Decimal(0)), "request": usd.get("requests_kcount", Decimal(0)) / 1000}


def _catalogue_names() -> dict[str, str]:
    return {
        "input": "input_mtok",
        "cached_input": "cache_read_mtok",
        "cache_write": "cache_write_mtok",
        "cache_write_1h": "cache_write_1h_mtok",
        "input_audio": "input_audio_mtok",
        "reasoning": "output_reasoning_mtok",
        "output_audio": "output_audio_mtok",
    }


def _rates(usd: Mapping[str, Decimal]) -> Rates:
    """Rates from USD per million tokens, `request` in USD; a part without a price costs what its whole costs."""

    def picos(name: str, whole: int) -> int:
        return _rounded_up(usd[name] * _PICOS_PER_USD / _MTOK) if name in usd else whole

    text_in, text_out = picos("input", 0), picos("output", 0)
    cache_write = picos("cache_write", text_in)
    return Rates(
        input=text_in,
        cached_input=picos("cached_input", text_in),
        cache_write=cache_write,
        cache_write_1h=picos("cache_write_1h", cache_write),
        input_audio=picos("input_audio", text_in),
        output=text_out,
        reasoning=picos("reasoning", text_out),
        output_audio=picos("output_audio", text_out),
        request=_rounded_up(usd.get("request", Decimal(0)) * _PICOS_PER_USD),
    )


def _rounded_up(picos: Decimal) -> int:
    return int(picos.to_integral_value(ROUND_CEILING))


def _number(value: object) -> object:
    if isinstance(value, Decimal | int) and not isinstance(value, bool):
        return value
    raise ValueError("should be a number")


_Usd = Annotated[Decimal, Field(ge=0, le=1_000_000), BeforeValidator(_number)]


class _PriceFileEntry(BaseModel):
    """One model in a price file: USD per million tokens, `request` in USD per request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: _Usd
    output: _Usd
    cached_input: _Usd | None = None
    cache_write: _Usd | None = None
    cache_write_1h: _Usd | None = None
    input_audio: _Usd | None = None
    reasoning: _Usd | None = None
    output_audio: _Usd | None = None
    request: _Usd | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**53 - 1), BeforeValidator(_number)] | None = None

    def rates(self) -> Rates:
        """The entry as rates; a price finer than a pico-dollar per token is rounded up to one."""
        rates = _rates(self.model_dump(exclude={"max_output_tokens"}, exclude_none=True))
        return msgspec.structs.replace(rates, max_output_tokens=self.max_output_tokens)


def read_price_file(path: Path) -> dict[str, Rates]:
    """Reads a price file, JSON or TOML by its ending: model names, or prefixes ending in `*`, and their rates.

    Raises `InvalidValueError` that names the file, the entry and what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries = tomllib.loads(text, parse_float=Decimal) if path.suffix == ".toml" else _parse_json(text)
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"The price file {path} cannot be read: {error}.") from error
    if not isinstance(entries, dict):
        raise InvalidValueError(f"The price file {path} should hold an object of models and their prices.")
    return {name: _read_entry(path, name, entry).rates() for name, entry in entries.items()}


def _read_entry(path: Path, name: str, entry: object) -> _PriceFileEntry:
    if not name or "*" in name[:-1]:
        raise InvalidValueError(f"The price file {path}, entry {name!r}: a name, with `*` only at its end, is needed.")
    try:
        return _PriceFileEntry.model_validate(entry)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'the entry'}: {e['msg']}" for e in error.errors()]
        raise InvalidValueError(f"The price file {path}, entry {name!r}: {'; '.join(problems)}.") from error


def _parse_json(text: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise ValueError("a name stands in it twice")
        return members

    parsed: object = json.loads(text, parse_float=Decimal, object_pairs_hook=unique)
    return parsed
