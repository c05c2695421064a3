"""One spelling for what checkpoints have called a tensor over the years.

Models know a tensor by its *canonical* name: no leading "model.", and each expert's weights for themselves, as
`layers.0.mlp.experts.7.gate_proj.weight`. What encodes images is `visual.*` or `vision_tower.*` (CLIP),
`projector.<n>.*` (the products of a projector, counted with the activations between them) and `image_newline`. Knows
strings and shapes; called by the loader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PREFIX = re.compile(r"^(language_model\.model\.|model\.language_model\.|language_model\.|model\.)")
_MIXTRAL_WEIGHT = re.compile(r"(?<=\.experts\.)(\d+)\.(w[123])(?=\.)")
_MIXTRAL_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_EXPERT_PRODUCT = re.compile(r"(?<=\.experts\.)(\d+)\.(gate_proj|down_proj|up_proj)$")
_PREFIXES = ("model.", "", "model.language_model.", "language_model.model.", "language_model.")
_TOWER = re.compile(r"^(vision_tower\.vision_tower\.vision_model\.|vision_tower\.vision_model\.|vision_model\.)")
_PROJECTOR = re.compile(r"^(?:multi_modal_projector\.linear_(\d)|mm_projector(?:\.(\d+))?)(?=\.(?:weight|bias)$)")
_VISION = ("visual.", "vision_tower.", "projector.", "image_newline")
_STACK = re.compile(r"^(.*\.experts)\.(gate_up_proj|down_proj)$")

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A canonical tensor in a tensor of the file: all of it, or one expert's part of a stack."""

    name: str
    shape: tuple[int, ...]
    start: tuple[int, int] | None = None
    """Expert and first row in a stack; None = the piece is the file's whole tensor"""

    def index(self, take: tuple[slice, ...]) -> Index:
        """The part `take` of this piece, as an index of the file's tensor."""
        if self.start is None:
            return take
        expert, row = self.start
        rows = range(self.shape[0])[take[0]]
        return (expert, slice(row + rows.start, row + rows.stop), *take[1:])


def canonical(key: str) -> str:
    """The name without what varies: prefixes of the whole model, and families' own names of some parts."""
    name = _PREFIX.sub("", key).replace(".block_sparse_moe.", ".mlp.")
    name = _PROJECTOR.sub(_projector, _TOWER.sub("vision_tower.", name))
    return _MIXTRAL_WEIGHT.sub(lambda found: f"{found[1]}.{_MIXTRAL_NAMES[found[2]]}", name)


def spellings(product: str) -> tuple[str, ...]:
    """The names by which checkpoints, and the patterns in their config.json, may know a product; the likeliest first.

    Args:
        product: canonical, without ".weight".
    """
    mixtral = {theirs: short for short, theirs in _MIXTRAL_NAMES.items()}
    old = _EXPERT_PRODUCT.sub(lambda found: f"{found[1]}.{mixtral[found[2]]}", product)
    old = old.replace(".mlp.", ".block_sparse_moe.") if old != product else product
    return tuple(prefix + name for name in dict.fromkeys((product, old)) for prefix in _PREFIXES)


def of_vision(name: str) -> bool:
    """Whether a tensor of this canonical name encodes images; all others are the language model's."""
    return name.startswith(_VISION)


def pieces(key: str, shape: tuple[int, ...]) -> Iterator[Piece]:
    """The canonical tensors that the tensor `key` of a file holds.

    One, but for stacks of experts, as transformers 5 keeps them in memory: gate_up_proj [E, 2 * I, N], gate rows first,
    and down_proj [E, N, I].
    """
    name = canonical(key)
    stack = _STACK.match(name)
    parts = ["gate_proj", "up_proj"] if stack and stack[2] == "gate_up_proj" else ["down_proj"]
    if stack is None or len(shape) != 3 or shape[1] % len(parts):
        yield Piece(name, shape)
        return
    rows = shape[1] // len(parts)
    for expert in range(shape[0]):
        for place, part in enumerate(parts):
            yield Piece(f"{stack[1]}.{expert}.{part}.weight", (rows, shape[2]), (expert, place * rows))


def _projector(found: re.Match[str]) -> str:
    """transformers counts the products from 1; the original code counts all parts from 0, and has no count for one."""
    return f"projector.{2 * int(found[1]) - 2 if found[1] else found[2] or 0}"
