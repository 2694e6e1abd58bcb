"""`llmweir key`: makes, changes, shows and deletes the API keys of a running server's users."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import click
from rich.console import RenderableType

from llmweir.cli.asking import ask_secret, confirm, is_at_terminal, read_secret
from llmweir.cli.field_options import with_fields
from llmweir.cli.pages import MAX_PAGE_SIZE, Listing, Paging, paged, rows_of, show_pages
from llmweir.cli.param_types import TEXT
from llmweir.cli.plain_text import counted, printable
from llmweir.cli.remote import NotThereError, Remote
from llmweir.cli.session import AdminGroup, Session, connected, content_of
from llmweir.cli.tables import key_panel, key_table, minted_lines
from llmweir.key_records import KeyRegeneration, KeyUpdate, NewKey

_HASH = re.compile(r"[0-9a-f]{64}")


@click.group(cls=AdminGroup, short_help="Make, change, show and delete API keys of a running server.")
def key() -> None:
    """Make, change, show and delete the API keys of a running server's users.

    A key is named by its hash (as `key list` shows it) or its alias; `-` reads the key itself from standard input.
    Exit codes: 0 done, 1 refused, 2 usage, 3 not found, 4 taken, 5 not allowed, 6 no server that can answer,
    130 interrupted.
    """


@key.command(short_help="Make a key.")
@with_fields(NewKey)
@connected
def new(session: Session, body: dict[str, Any]) -> None:
    """Make an API key, which is shown this once; without --user-id a user is made for it."""
    session.show(session.remote.post("/key/generate", body), _minted_key)


@key.command(short_help="Change a key.")
@click.argument("name", type=TEXT, metavar="KEY")
@with_fields(KeyUpdate, leave_out=("key",), clears=True)
@connected
def update(session: Session, name: str, body: dict[str, Any]) -> None:
    """Change the fields that are given, all or none; it binds the very next request."""
    if not body:
        raise click.UsageError("There is nothing to change; see --help for what can be.")
    body = {"key": _hash_of(session.remote, name), **body}
    session.show(session.remote.post("/key/update", body), _key_row)


@key.command(short_help="Show a key's limits and what is spent.")
@click.argument("name", type=TEXT, required=False, metavar="[KEY]")
@connected
def info(session: Session, name: str | None) -> None:
    """Show a key: whose it is, its limits, what is spent in this period. Without KEY: the key that is called with."""
    token = None if name is None else _hash_of(session.remote, name)
    session.show(session.remote.get("/key/info", {"key": token}), _key_row)


@key.command("list", short_help="List keys.")
@click.option("--user-id", type=TEXT, metavar="TEXT", help="Keys of this user.")
@click.option("--key-alias", type=TEXT, metavar="TEXT", help="The key of this alias.")
@click.option("--team-id", type=TEXT, metavar="TEXT", help="Keys of this team.")
@paged
@connected
def list_keys(session: Session, paging: Paging, **query: str | None) -> None:
    """List keys, a page at a time or --all; below each stands the hash that names it."""
    listing = Listing("/key/list", "key", "size", "keys", "total_count", _key_rows)
    show_pages(session, listing, paging, {**query, "return_full_object": "true"})


@key.command(short_help="Refuse all requests with a key.")
@click.argument("name", type=TEXT, metavar="KEY")
@connected
def block(session: Session, name: str) -> None:
    """Refuse all requests with a key from now on."""
    answer = session.remote.post("/key/block", {"key": _hash_of(session.remote, name)})
    session.say(answer, f"Blocked {_shown(name)}.")


@key.command(short_help="Let a blocked key in again.")
@click.argument("name", type=TEXT, metavar="KEY")
@connected
def unblock(session: Session, name: str) -> None:
    """Let a blocked key in again."""
    answer = session.remote.post("/key/unblock", {"key": _hash_of(session.remote, name)})
    session.say(answer, f"Unblocked {_shown(name)}.")


@key.command(short_help="Delete keys.")
@click.argument("names", type=TEXT, nargs=-1, required=True, metavar="KEY...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
def delete(session: Session, names: tuple[str, ...], yes: bool) -> None:
    """Delete keys, all or none of them; requests with them are refused from now on."""
    confirm(f"Delete {', '.join(map(_shown, names))}?", is_sure=yes)
    hashes = list(dict.fromkeys(_hash_of(session.remote, name) for name in names))
    session.say(session.remote.post("/key/delete", {"keys": hashes}), f"Deleted {counted(len(hashes), 'key')}.")


@key.command(short_help="Put a new key in the place of an old one.")
@click.argument("name", type=TEXT, metavar="KEY")
@with_fields(KeyRegeneration, clears=True)
@connected
def regenerate(session: Session, name: str, body: dict[str, Any]) -> None:
    """Put a new key, shown this once, in the place of an old one, which is dead at once.

    All else of it stays, but for the fields that are given.
    """
    session.show(session.remote.post(f"/key/{_hash_of(session.remote, name)}/regenerate", body), _minted_key)


def _hash_of(remote: Remote, name: str) -> str:
    """The hash of the key that a word of the command names; the key itself goes into no URL, and so into no log."""
    if name == "-":
        return _hashed(ask_secret("The key") if is_at_terminal() else read_secret())
    if name.startswith("sk-"):
        return _hashed(name)
    return name if _HASH.fullmatch(name) else _hash_of_alias(remote, name)


def _hash_of_alias(remote: Remote, alias: str) -> str:
    query = {"key_alias": alias, "return_full_object": "true", "page": 1, "size": MAX_PAGE_SIZE}
    rows = rows_of(content_of(remote.get("/key/list", query)), "keys")
    found = [str(row.get("token")) for row in rows if row.get("key_alias") == alias]
    if not found:
        raise NotThereError(f"There is no key with the alias {printable(alias)}.")
    return found[0]


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _shown(name: str) -> str:
    """A word of the command that names a key, without the key where it is one."""
    if name == "-":
        return "the key from standard input"
    return f"sk-...{printable(name[-4:])}" if name.startswith("sk-") else printable(name)


def _minted_key(answer: dict[str, Any]) -> list[RenderableType]:
    return [*key_panel(answer), *minted_lines(answer)]


def _key_row(answer: dict[str, Any]) -> list[RenderableType]:
    return key_panel(answer.get("info") or answer)


def _key_rows(rows: list[Any], is_first: bool) -> list[RenderableType]:
    return key_table(rows, has_head=is_first)
