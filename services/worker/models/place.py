"""Where the parts of a model are made. Model files get one `Place`; the registry makes it, once per model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.worker.models.embedding import Embedding
from services.worker.models.linear import Linear, WeightBytes, plain
from services.worker.models.ops import LayerOps
from services.worker.quantization.stored import Part, Scheme, Shapes, Stored
from services.worker.tensor_parallel import Communicator, Shard

Take = tuple[slice, int]
"""Features of a product that this rank has, start and stop given; and how many there are."""


@dataclass(frozen=True, slots=True)
class Place:
    """A rank and its device: what of a model is held here, in which memory, and what computes with it."""

    shard: Shard
    comm: Communicator
    ops: LayerOps
    dtype: torch.dtype
    device: torch.device
    scheme: Scheme | None = None
    """None: all weights are plain."""
    shapes: Shapes | None = None
    """Of the checkpoint's tensors; None where there are no files, or none has to be asked for."""
    sizes: WeightBytes = field(default_factory=WeightBytes)
    path: str = ""
    """Canonical name of the module that is made here, with a dot behind."""

    def inside(self, name: str) -> Place:
        """The place of a module within this one."""
        return dataclasses.replace(self, path=f"{self.path}{name}.")

    def columns(self, outputs: Mapping[str, Take], in_features: int, *, bias: bool = False) -> Linear:
        """An unloaded product, or several with the same inputs, of which this rank has some outputs."""
        inputs = slice(0, in_features)
        parts = [Part(self.path + name, rows, full, inputs, in_features) for name, (rows, full) in outputs.items()]
        return self._linear(parts, bias=bias)

    def rows(self, name: str, inputs: Take, out_features: int, *, bias: bool = False) -> Linear:
        """An unloaded product of which this rank has some inputs: outputs add up, its bias is added by one rank."""
        take, full = inputs
        return self._linear([Part(self.path + name, slice(0, out_features), out_features, take, full)], bias=bias)

    def whole(self, name: str, in_features: int, out_features: int) -> Linear:
        """An unloaded product that every rank has."""
        return self.columns({name: (slice(0, out_features), out_features)}, in_features)

    def embedding(self, name: str, vocab: Take, hidden: int) -> Embedding:
        """An unloaded table of which this rank has some rows."""
        part = Part(self.path + name, vocab[0], vocab[1], slice(0, hidden), hidden)
        stored = self.stored(part) or plain(part, self.empty(part.width, part.depth))
        return Embedding(stored, self.dtype)

    def tied(self, name: str, table: Embedding) -> Linear:
        """The product with a table's rows as weights."""
        part = Part(self.path + name, slice(0, 0), 0, slice(0, 0), 0)
        return Linear([part], [Stored({}, table.weight)], None, self.ops.product, self.dtype, self.sizes)

    def stored(self, part: Part) -> Stored | None:
        """How the checkpoint stores a part, if not as a plain weight."""
        return None if self.scheme is None else self.scheme.stored(part, self.shapes, self.device)

    def empty(self, *shape: int) -> Tensor:
        """An unloaded weight."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _linear(self, parts: list[Part], *, bias: bool) -> Linear:
        stored = [self.stored(part) for part in parts]
        out_features, fused = sum(part.width for part in parts), None
        if any(stored):
            filled = [s or plain(p, self.empty(p.width, p.depth)) for s, p in zip(stored, parts, strict=True)]
        else:
            fused = self.empty(out_features, parts[0].depth)
            views = torch.split(fused, [part.width for part in parts])
            filled = [plain(part, view) for part, view in zip(parts, views, strict=True)]
        # Some tools write a bias, of zeros perhaps, to every product that they quantize.
        unbiased = [part for part in parts if not (bias or f"{part.name}.bias" in (self.shapes or ()))]
        biases = None if len(unbiased) == len(parts) else self.empty(out_features).zero_()
        return Linear(parts, filled, biases, self.ops.product, self.dtype, self.sizes, fused, unbiased)
