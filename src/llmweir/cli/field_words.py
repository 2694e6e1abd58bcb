"""What `--help` says of each field; a field's own description in its model comes first."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "user_id": "The user's id.",
        "user_email": "Email address; no two users have the same.",
        "user_alias": "A name for people.",
        "password": "the password for the dashboard",
        "teams": "A team that the user is in.",
        "send_invite_email": "Send a mail with a link to set a password.",
        "user_role": "Who may do what.",
        "max_budget": "What may be spent in a period, in USD.",
        "budget_duration": "The period of the budget: 30s, 30m, 30h, 30d, 2w, 1mo.",
        "models": "A model that is allowed; a trailing * matches a prefix.",
        "tpm_limit": "Tokens in any 60 seconds.",
        "rpm_limit": "Requests in any 60 seconds.",
        "max_parallel_requests": "Requests in flight.",
        "model_rpm_limit": "Requests in any 60 seconds to a model or prefix.",
        "model_tpm_limit": "Tokens in any 60 seconds of a model or prefix.",
        "model_max_budget": 'Budget of a model or prefix: 10, or \'{"max_budget": 10, "budget_duration": "1d"}\'.',
        "soft_budget": "Crossing it raises an alert and refuses nothing, in USD.",
        "spend": "Set what is spent in this period, in USD.",
        "aliases": "The caller asks for NAME and gets the model TEXT.",
        "allowed_cache_controls": "A key of the body's `cache` object that may be sent.",
        "blocked": "Refuse every request.",
        "guardrails": "A guardrail, handed to the app behind.",
        "permissions": "Handed to the app behind, as a JSON object.",
        "metadata": "Handed to the app behind, as a JSON object.",
        "config": "Deprecated; kept and returned.",
        "team_id": "A team.",
        "auto_create_key": "Make an API key.",
        "key_alias": "A name for the key; no two keys have the same.",
        "duration": "Life of the key: 30s, 30m, 30h, 30d, 2w, 1mo.",
        "key": "the API key itself, instead of a made-up one",
        "new_key": "the new API key itself, instead of a made-up one",
    }
)
