"""Rounding to 4 bits that looks at activations: GPTQ (Frantar et al. 2022), on transformers' Llama model.

Inputs are rounded one by one, those with the largest activations first, and what each leaves is made up for by those
that are still to come. Scales are chosen before, for groups of neighbours (`desc_act` with `static_groups`). How much a
token counts is told by the gradient of its likelihood, as in GuidedQuant (Kim et al. 2025).
Nothing here is shared with the code under test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.unit.worker.quantization.writers import Rounded

MOST = 15
_SHRINKS = np.linspace(1.0, 0.7, 13)
_DAMPING = 0.1
_PIECES_AT_ONCE = 4


def calibrated(plain: Path, ids: Tensor, group: int) -> dict[str, Rounded]:
    """Every product of the layers of the Llama model `plain`, by its name.

    Args:
        ids: [N, T] text to calibrate with.
        group: inputs that share a scale.
    """
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval().requires_grad_(False)
    products = {f"model.{name}": part for name, part in model.model.named_modules() if isinstance(part, nn.Linear)}
    moments = _moments(model, products, ids)
    return {name: round_by_moment(part.weight, moments[name], group) for name, part in products.items()}


def _moments(model: Any, products: dict[str, nn.Linear], ids: Tensor) -> dict[str, Tensor]:
    """[K, K] of each product: the sum of |g| x x^T, with x an input and g the gradient of the loss at the output.

    GuidedQuant has g^2; from a few thousand tokens, of which few then count, |g| gave better weights.
    """
    moments = {name: torch.zeros(part.in_features, part.in_features) for name, part in products.items()}

    def watch(name: str, x: Tensor, output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            weighted = (x * gradient.norm(dim=-1, keepdim=True).sqrt()).flatten(0, 1)
            moments[name].addmm_(weighted.T, weighted)

        output.register_hook(add)

    hooks = [
        part.register_forward_hook(lambda _, inputs, output, name=name: watch(name, inputs[0].detach(), output))
        for name, part in products.items()
    ]
    for some in ids.split(_PIECES_AT_ONCE):
        embedded = model.model.embed_tokens(some).requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
        nn.functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return moments


@torch.inference_mode()
def round_by_moment(weight: Tensor, moment: Tensor, group: int) -> Rounded:
    """
    Args:
        weight: [N, K]
        moment: [K, K] sum of x x^T over the inputs seen, each weighted by what it matters.
    """
    width, depth = weight.shape
    damped = moment + _DAMPING * moment.diagonal().mean() * torch.eye(depth)
    groups = zip(weight.split(group, 1), damped.diagonal().split(group), strict=True)
    steps = [_best_steps(part, seen) for part, seen in groups]
    scales, zeros = (torch.stack(values, 1) for values in zip(*steps, strict=True))  # [N, K / group]
    order = damped.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order].double()))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    left, places = weight[:, order], order.tolist()
    codes = torch.empty(depth, width)
    for first in range(0, depth, group):
        end = first + group
        part, missed = left[:, first:end].T.contiguous(), torch.empty(group, width)
        for at, place in enumerate(places[first:end]):
            scale, zero = scales[:, place // group], zeros[:, place // group]
            code = codes[place] = ((part[at] / scale).round() + zero).clamp(0, MOST)
            missed[at] = (part[at] - (code - zero) * scale) / factor[first + at, first + at]
            part[at:].addr_(factor[first + at, first + at : end], missed[at], alpha=-1)
        left[:, end:].addmm_(missed.T, factor[first:end, end:], alpha=-1)
    whole = codes.T.numpy().astype(np.int64), zeros.numpy().astype(np.int64)
    return Rounded(*whole, scales.numpy().astype(np.float16), np.arange(depth) // group)


def _best_steps(part: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero [N] of a group [N, G]: of some ranges the one with the least error, weighted by `seen` [G]."""
    low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
    tries = []
    for shrink in _SHRINKS:
        scale = ((high - low) * shrink / MOST).clamp_min(1e-4).half().float()
        zero = (-low * shrink / scale).round().clamp(1, MOST)
        codes = ((part / scale[:, None]).round() + zero[:, None]).clamp(0, MOST)
        error = ((codes - zero[:, None]) * scale[:, None] - part).square() @ seen
        tries.append((error, scale, zero))
    errors, scales, zeros = (torch.stack(values) for values in zip(*tries, strict=True))
    best = errors.argmin(0, keepdim=True)
    return scales.gather(0, best)[0], zeros.gather(0, best)[0]
