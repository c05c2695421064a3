"""Usage of one request: prompt tokens once per prompt, generated tokens of every choice."""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway.responses import PromptTokensDetails, Usage
from services.gateway.streams import Stream


def usage_of(streams: Sequence[Stream], n: int) -> Usage:
    """Sum up ended generations, which lie prompt-major with n choices each.

    The choices of a prompt share it: what all of them found in the cache counts as cached.
    """
    groups = [streams[i : i + n] for i in range(0, len(streams), n)]
    prompt = sum(group[0].prompt_tokens for group in groups)
    cached = sum(min(s.cached_tokens for s in group) for group in groups)
    completion = sum(s.completion_tokens for s in streams)
    images = sum(group[0].image_tokens for group in groups)
    return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached, images))
