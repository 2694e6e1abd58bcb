"""`llmweir import litellm`: brings the users and keys of a running LiteLLM proxy over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from llmweir.cli.asking import ask_secret, is_at_terminal
from llmweir.cli.importing_keys import MINTED, KeyFile, KeyFileError
from llmweir.cli.importing_plan import Plan, Remark, There, plan_of
from llmweir.cli.importing_run import Import, Outcome, who_is_there
from llmweir.cli.litellm_source import LiteLLM, OnPage
from llmweir.cli.param_types import SERVER
from llmweir.cli.plain_text import counted, printable
from llmweir.cli.remote import Address, RefusedError, Remote
from llmweir.cli.session import DEFAULT_SERVER, AdminGroup

_TARGET_KEY = "LLMWEIR_MASTER_KEY"
_NAMED = 3
"""How many users or keys a line of the report names."""


class Wish(msgspec.Struct, frozen=True):
    """What one import was asked for."""

    source: Remote
    target: Remote | None
    file: KeyFile | None
    updates: bool
    only_shows: bool
    is_sure: bool


@click.group("import", cls=AdminGroup, short_help="Bring users and keys over from another gateway.")
def importing() -> None:
    """Bring users and keys over from another gateway.

    Exit codes: 0 all done, 1 some of it refused, 2 usage, 5 not allowed, 6 no server that can answer, 130 interrupted.
    """


@importing.command(short_help="Bring the users and keys of a running LiteLLM proxy over.")
@click.option("--server", type=SERVER, metavar="URL", required=True, help="The running LiteLLM proxy.")
@click.option(
    "--key", metavar="TEXT", envvar="LITELLM_MASTER_KEY", show_envvar=True,
    help="The proxy's master key; better in the environment. Asked for on a terminal where there is none.",
)  # fmt: skip
@click.option(
    "--to", type=SERVER, metavar="URL", default=DEFAULT_SERVER, envvar="LLMWEIR_SERVER", show_envvar=True,
    show_default=True, help="The running llmweir.",
)  # fmt: skip
@click.option(
    "--to-key", metavar="TEXT", envvar=_TARGET_KEY, show_envvar=True,
    help="llmweir's master key; better in the environment. Asked for on a terminal where there is none.",
)  # fmt: skip
@click.option(
    "--keys-out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Where the new keys go: a CSV file that only you can read. Given again, an import that broke off goes on.",
)  # fmt: skip
@click.option("--no-keys", is_flag=True, help="Bring users only.")
@click.option("--update", "updates", is_flag=True, help="Set the fields of users that are there already, too.")
@click.option(
    "--dry-run", "only_shows", is_flag=True, help="Show what would be done, and what cannot be; write nothing."
)
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.001, 86_400), metavar="SECONDS", default=30.0, show_default=True,
    help="How long to wait for each answer.",
)  # fmt: skip
def litellm(  # noqa: PLR0913 - one argument an option
    *,
    server: Address,
    key: str | None,
    to: Address,
    to_key: str | None,
    keys_out: Path | None,
    no_keys: bool,
    updates: bool,
    only_shows: bool,
    is_sure: bool,
    timeout_s: float,
) -> None:
    """Bring the users and keys of a running LiteLLM proxy into a running llmweir, with what they have spent.

    Begin with --dry-run. A proxy keeps only hashes of its keys, so each key is replaced by a new one; the new ones go
    to --keys-out and nowhere else. Run again, it makes what is missing.
    """
    if keys_out is None and not no_keys and not only_shows:
        raise click.UsageError("Say with --keys-out where the new keys go, or --no-keys.")
    source = Remote(server, _secret(key, "LITELLM_MASTER_KEY", "--key", "LiteLLM's master key"), timeout_s)
    target = None
    if to_key or not only_shows:
        target = Remote(to, _secret(to_key, _TARGET_KEY, "--to-key", "llmweir's master key"), timeout_s)
    file = None if no_keys or keys_out is None else KeyFile(keys_out)
    wish = Wish(source, target, file, updates, only_shows, is_sure)
    try:
        _carry_out(wish, wants_keys=not no_keys)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from error


def _carry_out(wish: Wish, *, wants_keys: bool) -> None:
    """Reads, plans, shows the plan, asks, writes, reports."""
    console = Console(highlight=False)
    plan = _plan(wish, wants_keys=wants_keys)
    _show_plan(console, plan, wish)
    if wish.only_shows or wish.target is None or not (plan.users or plan.keys):
        return
    _confirm(is_sure=wish.is_sure)
    if wish.file is not None:
        wish.file.write(wish.file.read().values())  # whether it can be written is known before anything is made
    work = Import(wish.target, updates=wish.updates)
    try:
        with _naming("llmweir", "--to"):
            _write(work, plan, wish)
    finally:
        _show_outcome(console, work.outcome, wish)
    if work.outcome.failures:
        raise click.exceptions.Exit(RefusedError.exit_code)


def _plan(wish: Wish, *, wants_keys: bool) -> Plan:
    with _progress() as progress, _naming("LiteLLM", "--server"):
        source = LiteLLM(wish.source)
        users = source.users(_counter(progress, "reading users"))
        keys = source.keys(_counter(progress, "reading keys")) if wants_keys else []
    there = There()
    if wish.target is not None:
        with _naming("llmweir", "--to"):
            there = who_is_there(wish.target)
    return plan_of(users, keys, there, datetime.now(UTC))


def _write(work: Import, plan: Plan, wish: Wish) -> None:
    with _progress() as progress:
        bar = progress.add_task("making users", total=len(plan.users))
        work.make_users(plan.users, lambda: progress.advance(bar))
        if wish.file is not None:
            keys_bar = progress.add_task("minting keys", total=len(plan.keys))
            work.mint_keys(plan.keys, wish.file, lambda: progress.advance(keys_bar))


def _show_plan(console: Console, plan: Plan, wish: Wish) -> None:
    would = "would be" if wish.only_shows else "to be"
    there = len(plan.users) - plan.new_users
    in_clear = sum(task.secret is not None for task in plan.keys)
    replaced = len(plan.keys) - in_clear
    before = 0 if wish.file is None else _minted(plan, wish.file)
    lines = {
        f"{counted(plan.new_users, 'user')} {would} made.": True,
        f"{counted(there, 'user')} there already, {would} {'updated' if wish.updates else 'left alone'}.": there,
        f"{counted(replaced, 'key')} {would} replaced by a new one: the proxy has only their hashes.": replaced,
        f"{counted(before, 'key')} of these made before, by the file of --keys-out.": before,
        f"{counted(in_clear, 'key')} {would} kept: the proxy lists them in clear.": in_clear,
        f"The running llmweir was not asked who is there already: set {_TARGET_KEY}.": wish.target is None,
    }
    for line in (line for line, applies in lines.items() if applies):
        console.print(line, markup=False, soft_wrap=True)
    _show_remarks(console, "Left out", plan.left_out)
    _show_remarks(console, "Changed or lost on the way", plan.remarks)


def _minted(plan: Plan, file: KeyFile) -> int:
    """How many keys of a plan are in the file as minted; raises KeyFileError."""
    minted = {old_token for old_token, row in file.read().items() if row.state == MINTED}
    return sum(task.old_token in minted for task in plan.keys)


def _show_remarks(console: Console, title: str, remarks: Iterable[Remark]) -> None:
    """Remarks, one line for all that say the same."""
    names: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for remark in remarks:
        names[remark.kind, remark.note.field, remark.note.reason].append(remark.name)
    if not names:
        return
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("of", "field", "why", "whose"):
        table.add_column(head, overflow="fold")
    for (kind, field, reason), whose in sorted(names.items()):
        table.add_row(*(Text(printable(cell)) for cell in (kind, field, reason, _some(whose))))
    console.print(table)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _show_outcome(console: Console, outcome: Outcome, wish: Wish) -> None:
    lines = [
        f"Users: {outcome.made_users} made, {outcome.changed_users} updated, {outcome.kept_users} left as they are.",
        f"Keys: {outcome.minted_keys} made, {outcome.kept_keys} there already.",
    ]
    if wish.file is not None:
        lines.append(f"The new keys are in {wish.file.path}.")
    lines += [f"Refused: {each.kind} {printable(each.name)}: {each.message}" for each in outcome.failures]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


@contextmanager
def _naming(server: str, option: str) -> Iterator[None]:
    """Says of which of the two servers an error speaks, which knows only of one."""
    try:
        yield
    except RefusedError as error:
        words = error.message.replace("as llmweir does", f"as {server} does").replace("--server", option)
        raise type(error)(f"{server}: {words}") from error


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _counter(progress: Progress, words: str) -> OnPage:
    bar = progress.add_task(words, total=None)
    return lambda come, total: progress.update(bar, completed=come, total=max(come, total))


def _confirm(*, is_sure: bool) -> None:
    if is_sure:
        return
    if not is_at_terminal():
        raise click.UsageError("There is no terminal to confirm on; give --yes to go on without being asked.")
    click.confirm("Go on?", abort=True, err=True)


def _secret(given: str | None, variable: str, option: str, words: str) -> str:
    """A key to call with; raises click.UsageError where there is none, or it fits no header."""
    if not given:
        if not is_at_terminal():
            raise click.UsageError(f"There is no key: set {variable}, or give {option}.")
        given = ask_secret(words)
    key = given.strip()
    if not (key.isascii() and key.isprintable()):
        raise click.UsageError("The key has characters that no key has.")
    return key
