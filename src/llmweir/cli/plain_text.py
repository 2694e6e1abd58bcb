"""Text that came from elsewhere, made safe for a terminal; text for the terminal, in words."""

from __future__ import annotations

from decimal import Decimal


def printable(text: str) -> str:
    """Spells out whatever a terminal would obey rather than show: control characters, marks that turn the writing."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def usd(amount: float) -> str:
    """Spells an amount with two decimals, or as many as it has: "25.00 USD", "0.0000138 USD"."""
    whole, _, fraction = f"{Decimal(str(amount)):f}".partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')} USD"


def counted(number: int, noun: str) -> str:
    """Spells a number of things: "1 user", "2 users"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
