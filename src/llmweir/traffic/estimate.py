"""How many tokens and how much money to hold for a request before its answer is known.

Input tokens: bytes of text times a ratio learned per model. Output tokens: by the setting `reserve`, see `Estimator`.
What is learned lives in this worker's memory alone: it changes what is held, never what is charged.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

from llmweir.pricing import Rates
from llmweir.remembered import Remembered
from llmweir.traffic.formats.base import RequestFacts
from llmweir.usage import Usage

Reserve = Literal["expected", "max", "none"]

FIRST_TOKENS_PER_BYTE = 0.25
_LEAST_TOKENS_PER_BYTE, _MOST_TOKENS_PER_BYTE = 0.02, 2.0
_LEARNING_RATE = 0.1
_ANSWERS_REMEMBERED = 20
_MOST_REMEMBERED = 20_000
_MOST_TOKENS = 10**9
_LEAST_ANSWER = Usage(input_tokens=1, output_tokens=1)


class Hold(msgspec.Struct, frozen=True, gc=False):
    """What to reserve: `asked_*` must fit under a limit itself, `hold_*` is held. Nanos of -1: there is no price."""

    asked_tokens: int
    hold_tokens: int
    asked_nanos: int
    hold_nanos: int
    input_tokens: int


NO_HOLD = Hold(0, 0, 0, 0, 0)
"""For a request that is counted as one and no more."""


class _Ratio(msgspec.Struct):
    """What was learned of one model: how many tokens a byte of text is."""

    tokens_per_byte: float


_FIRST_RATIO = _Ratio(FIRST_TOKENS_PER_BYTE)


class Estimator:
    """Estimates holds, and learns from what requests really used.

    `reserve` says how much output to hold: "expected", the largest of a caller's last 20 answers from a model (about
    the 95th percentile; `default_max_output_tokens` until there is one), never more than the caller's own maximum;
    "max", the caller's maximum, else the model's where it is known, else the default; "none", nothing.
    """

    def __init__(self, reserve: Reserve, default_max_output_tokens: int) -> None:
        self._reserve = reserve
        self._default_output_tokens = default_max_output_tokens
        self._ratios: Remembered[str, _Ratio] = Remembered(_MOST_REMEMBERED)
        self._answers: Remembered[tuple[str, str], deque[int]] = Remembered(_MOST_REMEMBERED)

    def hold(self, facts: RequestFacts, user_id: str, model: str, rates: Rates | None, output_is_free: bool) -> Hold:
        """Estimates what a request to `model` will use; `rates` of None means that the model has no price."""
        ratio = self._ratios.get(model, _FIRST_RATIO)
        input_tokens = int(facts.text_bytes * ratio.tokens_per_byte) + facts.media_tokens + 1
        input_tokens = min(input_tokens, _MOST_TOKENS)
        output_tokens = stated_tokens = 0
        if not output_is_free and self._reserve != "none":
            most = facts.max_output_tokens
            stated_tokens = facts.answers if most is None else most * facts.answers
            output_tokens = self._output_tokens(facts, user_id, model, rates)
            stated_tokens = min(stated_tokens, _MOST_TOKENS)
        asked_nanos, hold_nanos = 0, -1
        if rates is not None:
            firm_tokens = stated_tokens if self._reserve == "max" else 0
            asked_nanos, hold_nanos = rates.holds_nanos(input_tokens, firm_tokens, output_tokens)
            if hold_nanos == 0 and rates.cost_nanos(_LEAST_ANSWER) > 0:
                hold_nanos = (
                    1  # what costs is not free because nothing is known of its answer: a spent budget refuses it
                )
        return Hold(input_tokens + stated_tokens, input_tokens + output_tokens, asked_nanos, hold_nanos, input_tokens)

    def tokens_of(self, text_bytes: int, model: str) -> int:
        """Estimates the tokens of text whose usage nobody reported."""
        return -int(-text_bytes * self._ratios.get(model, _FIRST_RATIO).tokens_per_byte // 1)

    def learn(self, facts: RequestFacts, user_id: str, model: str, usage: Usage) -> None:
        """Learns from the reported usage of an answer."""
        text_tokens = usage.input_tokens - facts.media_tokens
        if facts.text_bytes > 0 and text_tokens > 0:
            ratio = self._ratios.get(model)
            if ratio is None:
                ratio = self._ratios[model] = _Ratio(FIRST_TOKENS_PER_BYTE)
            seen = text_tokens / facts.text_bytes
            if not _LEAST_TOKENS_PER_BYTE <= seen <= _MOST_TOKENS_PER_BYTE:
                seen = _LEAST_TOKENS_PER_BYTE if seen < _LEAST_TOKENS_PER_BYTE else _MOST_TOKENS_PER_BYTE
            ratio.tokens_per_byte += (seen - ratio.tokens_per_byte) * _LEARNING_RATE
        if usage.output_tokens:
            answers = self._answers.get((user_id, model))
            if answers is None:
                answers = deque(maxlen=_ANSWERS_REMEMBERED)
                self._answers[(user_id, model)] = answers
            answers.append(-(-usage.output_tokens // facts.answers))

    def _output_tokens(self, facts: RequestFacts, user_id: str, model: str, rates: Rates | None) -> int:
        most = facts.max_output_tokens
        if self._reserve == "max":
            known = rates.max_output_tokens if rates is not None else None
            each = most if most is not None else known or self._default_output_tokens
        else:
            answers = self._answers.get((user_id, model))
            each = max(answers) if answers else self._default_output_tokens
            if most is not None and most < each:
                each = most
        tokens = each * facts.answers
        return min(_MOST_TOKENS, tokens)
