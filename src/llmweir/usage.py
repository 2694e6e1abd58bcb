"""What one request really used, in tokens, normalised over the providers."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one request.

    `input_tokens` and `output_tokens` are totals; the other fields are parts of them: cached, cache-write and
    audio input lie inside `input_tokens`, reasoning and audio output inside `output_tokens`. Providers that report
    a part beside the total (Anthropic's cache tokens, Gemini's thoughts) are normalised to this by their reader.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    input_audio_tokens: int = 0
    reasoning_tokens: int = 0
    output_audio_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together: what a tpm limit counts."""
        return self.input_tokens + self.output_tokens
