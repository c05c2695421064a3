"""Which products the words of a config.json mean: names in any spelling, patterns, and classes of modules.

Called by the formats whose settings differ from product to product.
"""

from __future__ import annotations

import functools
import re

from shared.checkpoint.checkpoint_names import canonical, spellings
from shared.errors import ConfigError

_spellings = functools.lru_cache(maxsize=1024)(spellings)
"""Every pattern of a config.json is tried with the same product, one product after the other."""


class NamePattern:
    """A regular expression that a product's name begins with."""

    def __init__(self, text: str) -> None:
        """
        Raises:
            ConfigError: no regular expression.
        """
        try:
            self._regex = re.compile(text)
        except re.error as fault:
            raise ConfigError(f"quantization_config: {text!r} is no regular expression: {fault}") from fault

    def means(self, product: str) -> bool:
        """Whether one of the spellings of a canonical name matches."""
        return any(self._regex.match(name) for name in _spellings(product))


def canonical_product(name: str) -> str:
    """A product's canonical name, without ".weight"."""
    return canonical(f"{name}.weight").removesuffix(".weight")


def module_class(product: str) -> str:
    """What PyTorch calls the kind of module that holds a product."""
    return "Embedding" if product.rsplit(".", 1)[-1] == "embed_tokens" else "Linear"
