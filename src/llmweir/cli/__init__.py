"""The command line: `llmweir serve`, `check`, `demo`, `model`; `user` and `key` talk to a running server."""

from __future__ import annotations

import click

from llmweir import __version__
from llmweir.cli.check import check
from llmweir.cli.demo import demo
from llmweir.cli.importing import importing
from llmweir.cli.keys import key
from llmweir.cli.model import model
from llmweir.cli.serve import serve
from llmweir.cli.users import user


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="llmweir")
def main() -> None:
    """Rate limits and budgets for LLM traffic."""


main.add_command(serve)
main.add_command(check)
main.add_command(demo)
main.add_command(model)
main.add_command(user)
main.add_command(key)
main.add_command(importing)
