"""How a server of ours logs: one line an event, its name first, its fields after; never a key or a prompt."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from llmweir.traffic.proxy import UpstreamBrokenError


class ExpectedEnds(logging.Filter):
    """Makes one line of an answer that the upstream broke off, and none of one that was cut at the end of a drain.

    Both must reach the server as exceptions, which then closes the connection and logs a traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record, or leaves it out."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, UpstreamBrokenError):
            record.msg, record.args, record.exc_info = "upstream_broke_off", (), None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return not isinstance(error, asyncio.CancelledError)


def log_config(level: str = "INFO") -> dict[str, Any]:
    """The logging configuration, as `logging.config.dictConfig` and uvicorn take it; `level` is of our own events."""
    line = {
        "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
        "datefmt": "%Y-%m-%dT%H:%M:%S%z",
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": line},
        "filters": {"expected_ends": {"()": ExpectedEnds}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["expected_ends"]}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"llmweir": {"level": level}, "uvicorn": {"level": "ERROR"}},
    }
