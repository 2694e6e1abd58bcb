"""Rate limits and budgets for LLM traffic, as one ASGI middleware or a reverse proxy."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["Caller", "RateLimitMiddleware", "__version__"]

from llmweir.decision import Caller
from llmweir.wiring import RateLimitMiddleware
