"""Tensors of quantized checkpoints that nothing here reads: what rounds activations, and keys and values.

Each token's activations are rounded by a scale of their own, where they are rounded; keys and values are kept as
--kv-cache-dtype says. Called by `build.py` while it loads.
"""

from __future__ import annotations

import re

from shared.checkpoint.checkpoint_names import of_vision

_OF_CACHE = re.compile(
    r"\.self_attn\.(?:(?:attn\.|[qkv]_proj\.|qkv_proj\.)?(?:[qkv]|kv|prob|prob_output|[kv]_cache)_(?:scale|zero_point)"
    r"|[qkv]_proj\.output_(?:scale|zero_point))$"
)
"""As compressed-tensors, AutoFP8, ModelOpt and Quark have called them."""
_OF_ACTIVATIONS = re.compile(r"\.(?:input_scale|input_zero_point|activation_scale|output_scale|output_zero_point)$")


class Unread:
    """What to skip in a checkpoint: these, and what encodes images. Lives while a model is loaded."""

    def __init__(self) -> None:
        self.cache_scales = 0
        """Tensors for keys and values that were skipped."""

    def __call__(self, name: str) -> bool:
        """Whether a tensor of this canonical name is rightly there, but not read."""
        if _OF_CACHE.search(name):
            self.cache_scales += 1
            return True
        return bool(_OF_ACTIVATIONS.search(name)) or of_vision(name)
