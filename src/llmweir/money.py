"""Money: whole nano-dollars (1e-9 USD) inside, numbers of USD outside."""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact

from llmweir.errors import InvalidValueError

NANOS_PER_USD = 1_000_000_000
MAX_USD = 9_000_000
_PLAIN = re.compile(r"[0-9]{1,64}(\.[0-9]{1,64})?([eE][+-]?[0-9]{1,3})?")


def usd_to_nanos(value: float | str | Decimal) -> int:
    """Reads an amount of USD as whole nano-dollars, exactly.

    A float is what its shortest text says (0.1 is a tenth). Raises InvalidValueError for anything that is not a
    number from 0 to 9,000,000, and for what is finer than a nano-dollar; the message never repeats the value.
    """
    amount = _as_decimal(value)
    if not amount.is_finite() or not 0 <= amount <= MAX_USD:
        raise InvalidValueError("An amount of USD is a number from 0 to 9000000.")
    exact = Context(prec=64, traps=[Inexact])
    try:
        return int(exact.to_integral_exact(exact.scaleb(amount, 9)))
    except Inexact as finer:
        raise InvalidValueError("An amount of USD has at most 9 decimals.") from finer


def nanos_to_usd(nanos: int) -> int | float:
    """Answers the amount in USD as JSON carries it: a whole number where it is one, else the nearest float.

    An amount read by `usd_to_nanos` from a float comes back as that float. A float tells all nano-dollars apart up
    to 8,388,608 USD (2**23); from there to 9,000,000 only every other one.
    """
    usd, rest = divmod(nanos, NANOS_PER_USD)
    return nanos / NANOS_PER_USD if rest else usd


def format_usd(nanos: int) -> str:
    """Spells the amount in USD, exactly and without an exponent: "0.1", "12", "0.000000001"."""
    if nanos < 0:
        return "-" + format_usd(-nanos)
    usd, rest = divmod(nanos, NANOS_PER_USD)
    return f"{usd}.{rest:09d}".rstrip("0") if rest else str(usd)


def _as_decimal(value: object) -> Decimal:
    if isinstance(value, float):
        return Decimal(repr(float(value)))
    if isinstance(value, Decimal) or (isinstance(value, int) and not isinstance(value, bool)):
        return Decimal(value)
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return Decimal(value)
    raise InvalidValueError("An amount of USD is a number from 0 to 9000000.")
