"""`python -m llmweir.cli` is `llmweir`."""

from llmweir.cli import main

main()
