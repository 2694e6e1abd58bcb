"""Provider formats: the facts of a request, the usage of an answer, the shape of an error, one file a dialect."""

from llmweir.traffic.formats.base import Format, RequestFacts, StreamOutcome, StreamReader
from llmweir.traffic.formats.error_body import error_body, policy_name, problem_body, refusal_of
from llmweir.traffic.formats.usage_filter import UsageEventFilter

__all__ = [
    "Format",
    "RequestFacts",
    "StreamOutcome",
    "StreamReader",
    "UsageEventFilter",
    "error_body",
    "policy_name",
    "problem_body",
    "refusal_of",
]
