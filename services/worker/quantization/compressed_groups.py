"""What a configuration of compressed-tensors says of a product: the settings of the first target that means it.

Source: how compressed-tensors 0.20 matches targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.worker.quantization.product_names import NamePattern, canonical_product, module_class
from shared.errors import ConfigError

_PATTERN = "re:"


@dataclass(frozen=True, slots=True)
class ProductFormat:
    """How the products of a group are stored."""

    kind: str
    """`int` or `float`"""
    bits: int
    strategy: str
    """What shares a scale: `tensor`, `channel`, `group`, `block`, ..."""
    group: int | None
    """Inputs, with the strategy `group`; None = all."""
    block: tuple[int, int] | None
    """Outputs and inputs, with the strategy `block`."""
    symmetric: bool
    layout: str
    """What compressed-tensors calls the format of the files."""

    def __str__(self) -> str:
        return f"{self.kind}{self.bits} by {self.strategy} as {self.layout!r}"


class CompressedGroups:
    """The `config_groups` of a checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: no groups, or a pattern that is none.
        """
        groups = (config.get("config_groups") or {}).values()
        if not groups:
            raise ConfigError("compressed-tensors: config.json has no config_groups")
        targets: dict[str, ProductFormat] = {}
        for group in groups:
            if group.get("weights"):
                layout = str(group.get("format") or config.get("format"))
                targets |= dict.fromkeys(group.get("targets") or ["Linear"], _format_of(group["weights"], layout))
        patterns = sorted(t for t in targets if _is_pattern(t))
        self._patterns = [(NamePattern(t.removeprefix(_PATTERN)), targets[t]) for t in patterns]
        self._names = {canonical_product(t): own for t, own in targets.items() if not _is_pattern(t)}
        ignore: list[str] = config.get("ignore") or []
        self._ignored_patterns = [NamePattern(t.removeprefix(_PATTERN)) for t in ignore if _is_pattern(t)]
        self._ignored_names = {canonical_product(t) for t in ignore if not _is_pattern(t)}
        self.formats = list(targets.values())
        """Of all targets, in order."""

    def of(self, product: str) -> ProductFormat | None:
        """By a target that is its name, else by the first pattern in alphabetical order, else by its class."""
        by_pattern = (own for pattern, own in self._patterns if pattern.means(product))
        return self._names.get(product) or next(by_pattern, None) or self._names.get(module_class(product))

    def ignores(self, product: str) -> bool:
        """Whether the checkpoint's maker left it plain, whatever targets mean it."""
        return (
            product in self._ignored_names
            or module_class(product) in self._ignored_names
            or any(pattern.means(product) for pattern in self._ignored_patterns)
        )


def _is_pattern(target: str) -> bool:
    return target.startswith(_PATTERN)


def _format_of(weights: dict[str, Any], layout: str) -> ProductFormat:
    """Of the arguments of a group's weights; where they do not name a strategy, the groups' size does."""
    group = weights.get("group_size")
    strategy = weights.get("strategy") or ("tensor" if group is None else "channel" if group == -1 else "group")
    block = weights.get("block_structure")
    rows, columns = (int(side) for side in (block.split("x") if isinstance(block, str) else block or (0, 0)))
    return ProductFormat(
        kind=str(weights.get("type") or "int"),
        bits=int(weights.get("num_bits") or 8),
        strategy=str(strategy),
        group=int(group) if group and strategy == "group" else None,
        block=(rows, columns) if strategy == "block" else None,
        symmetric=bool(weights.get("symmetric", True)),
        layout=layout,
    )
