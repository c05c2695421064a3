"""How many prompt tokens a run computed, and the fewest it could have: from the token sequences of its requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rhizome import RuntimeEndpoint


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as the server saw it. `is_ahead`: it generates nothing and only computes a prefix for others."""

    input_ids: list[int]
    output_ids: list[int]
    cached_tokens: int
    is_ahead: bool


class CountingEndpoint(RuntimeEndpoint):
    """An endpoint that remembers its requests."""

    def __init__(self, base_url: str, **more: Any) -> None:
        super().__init__(base_url, **more)
        self.seen: list[tuple[str | list[int], list[int], int, bool]] = []

    async def call(self, body: dict[str, Any]) -> Any:
        answer = await super().call(body)
        many = isinstance(answer, list)
        prompts = body["text"] if "text" in body else body["input_ids"]
        if not (many and isinstance(prompts, list)):
            prompts = [prompts] * (len(answer) if many else 1)
        ahead = body["sampling_params"].get("max_new_tokens") == 0 and not body.get("return_logprob")
        for prompt, one in zip(prompts, answer if many else [answer], strict=True):
            self.seen.append((prompt, one.get("output_ids", []), one["meta_info"].get("cached_tokens", 0), ahead))
        return answer

    def requests(self, tokenizer: Any) -> list[Request]:
        """What was seen, in tokens."""
        return [
            Request(p if isinstance(p, list) else tokenizer.encode(p).ids, out, cached, ahead)
            for p, out, cached, ahead in self.seen
        ]


class _Trie:
    """Token sequences; a walk tells how much of one is there already."""

    def __init__(self) -> None:
        self._root: dict[int, Any] = {}

    def add(self, ids: Sequence[int]) -> int:
        """Length of the longest known prefix; the whole is known afterwards."""
        node, known, fresh = self._root, 0, False
        for token in ids:
            fresh = fresh or token not in node
            known += not fresh
            node = node.setdefault(token, {})
        return known


def rates(requests: Sequence[Request], page_size: int) -> dict[str, float]:
    """Share of prompt tokens that need not be computed: measured, and the most possible.

    Total: prompt tokens of all requests but those sent ahead. Computed: of all requests, those sent ahead included.
    The most possible is with every token of a prefix computed once, each prompt's last token always (it gives the
    logits), and for the paged figure only whole pages of `page_size` tokens shared.
    """
    asking = [r for r in requests if not r.is_ahead]
    total = sum(len(r.input_ids) for r in asking)
    computed = sum(len(r.input_ids) - r.cached_tokens for r in requests)
    trie, reusable, paged = _Trie(), 0, 0
    for request in asking:
        known = min(trie.add(request.input_ids), len(request.input_ids) - 1)
        trie.add([*request.input_ids, *request.output_ids])
        reusable += known
        paged += known // page_size * page_size
    return {
        "hit_rate": 1 - computed / total,
        "best": reusable / total,
        "best_paged": paged / total,
        "prompt_tokens": total,
        "computed_tokens": computed,
    }
