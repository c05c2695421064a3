"""What a model's arithmetic and memory traffic come to, from its config.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BYTES = 2
"""bf16"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one model shape."""

    layer_weights: int
    """Elements of all layers' matrices."""
    head_weights: int
    layers: int
    q_width: int
    kv_width: int

    @property
    def kv_bytes(self) -> int:
        """Keys and values of a token, all layers."""
        return 2 * self.layers * self.kv_width * BYTES

    def decode_bytes(self, rows: int, context: int) -> int:
        """Every weight once, and the keys and values of every row."""
        return (self.layer_weights + self.head_weights) * BYTES + rows * context * self.kv_bytes

    def prefill_flops(self, rows: int, tokens: int) -> float:
        """Causal attention and all matrices but the head, which sees a token per row."""
        attention = 2.0 * self.layers * rows * tokens * tokens * self.q_width  # half of 4 * T * T * width
        return 2.0 * rows * tokens * self.layer_weights + attention + 2.0 * rows * self.head_weights


def limits_of(config: dict[str, Any]) -> Limits:
    """From the contents of config.json."""
    hidden, layers, dim = config["hidden_size"], config["num_hidden_layers"], config["head_dim"]
    q_width, kv_width = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    per_layer = hidden * (2 * q_width + 2 * kv_width + 3 * config["intermediate_size"])
    return Limits(layers * per_layer, config["vocab_size"] * hidden, layers, q_width, kv_width)
