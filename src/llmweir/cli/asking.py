"""Asks the person at the terminal, and reads what a script hands over: secrets are no words of a command."""

from __future__ import annotations

import sys
from typing import TextIO

import click


def is_at_terminal() -> bool:
    """Whether there is anybody to ask."""
    stdin: TextIO | None = sys.stdin
    return stdin is not None and stdin.isatty()


def ask_secret(what: str, *, twice: bool = False) -> str:
    """Asks for a secret without showing it; on a terminal only, see `is_at_terminal`."""
    asked: str = click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True)
    return asked


def read_secret() -> str:
    """Reads one line of standard input, without its end; raises click.UsageError where there is none."""
    stdin: TextIO | None = sys.stdin
    try:
        line = stdin.readline() if stdin is not None else ""
    except UnicodeDecodeError as error:
        raise click.UsageError("Standard input is not UTF-8.") from error
    secret = line.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise click.UsageError("There is no line to read on standard input.")
    return secret


def confirm(question: str, *, is_sure: bool) -> None:
    """Asks before something is deleted, unless told not to; raises click.UsageError where nobody can be asked."""
    if is_sure:
        return
    if not is_at_terminal():
        raise click.UsageError("There is no terminal to confirm on; give --yes to delete without being asked.")
    click.confirm(question, abort=True, err=True)
