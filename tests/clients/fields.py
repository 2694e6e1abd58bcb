"""Every field of a record that clients write, twice: as it is made and as it is changed."""

from __future__ import annotations

from typing import Any

NEW: dict[str, Any] = {
    "user_id": "ana",
    "user_email": "Ana@example.org",
    "user_alias": "Ana",
    "teams": ["search"],
    "user_role": "internal_user",
    "max_budget": 25.5,
    "budget_duration": "1mo",
    "models": ["gpt-4o", "claude-*"],
    "tpm_limit": 30000,
    "rpm_limit": 60,
    "max_parallel_requests": 3,
    "model_rpm_limit": {"gpt-4o": 10},
    "model_tpm_limit": {"gpt-4o": 1000},
    "model_max_budget": {"gpt-4o": {"budget_limit": 0.0005, "time_period": "30d"}},
    "spend": 1.5,
    "aliases": {"fast": "gpt-4o"},
    "allowed_cache_controls": ["no-cache"],
    "blocked": False,
    "guardrails": ["pii"],
    "permissions": {"pii": False},
    "metadata": {"desk": 4},
    "config": {"old": True},
}
CHANGED: dict[str, Any] = {
    "user_email": "ana@example.com",
    "user_role": "proxy_admin_viewer",
    "max_budget": 0.1,
    "budget_duration": "2w",
    "models": [],
    "tpm_limit": 0,
    "rpm_limit": 1,
    "max_parallel_requests": 9,
    "model_rpm_limit": {},
    "model_tpm_limit": {"o1*": 5},
    "model_max_budget": {"o1*": 2.5},
    "spend": 0,
    "aliases": {},
    "allowed_cache_controls": [],
    "blocked": True,
    "guardrails": [],
    "permissions": {},
    "metadata": {"desk": 5},
    "config": {},
}
