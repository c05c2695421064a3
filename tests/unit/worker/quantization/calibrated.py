"""Rounding to 4 bits that looks at activations: GPTQ (Frantar et al. 2022) with `desc_act`, on transformers' model.

Inputs are rounded one by one, those with the largest activations first, and what each leaves is made up for by those
that are still to come. Nothing here is shared with the code under test.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.unit.worker.quantization.writers import Rounded

MOST = 15
_SHRINKS = np.linspace(1.0, 0.7, 7)


@torch.inference_mode()
def calibrated(plain: Path, ids: Tensor, group: int) -> dict[str, Rounded]:
    """Every product of the layers of the Llama model `plain`, by its name; inputs come from layers already rounded.

    Args:
        ids: [N, T] text to calibrate with.
    """
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    length = ids.shape[1]
    hidden, positions = model.model.embed_tokens(ids), torch.arange(length)[None]
    run = {
        "position_embeddings": model.model.rotary_emb(hidden, positions), "position_ids": positions,
        "attention_mask": torch.full((1, 1, length, length), float("-inf")).triu(1),
    }  # fmt: skip
    out = {}
    for number, layer in enumerate(model.model.layers):
        products = {name: part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
        moments: dict[str, Tensor] = {}
        hooks = [part.register_forward_pre_hook(partial(_add_moment, moments, name)) for name, part in products.items()]
        layer(hidden, **run)
        for hook in hooks:
            hook.remove()
        for name, part in products.items():
            found = round_by_moment(part.weight, moments[name], group)
            part.weight.copy_(torch.from_numpy(found.weight()))
            out[f"model.layers.{number}.{name}"] = found
        hidden = layer(hidden, **run)
    return out


def _add_moment(moments: dict[str, Tensor], name: str, part: nn.Module, inputs: tuple[Any, ...]) -> None:
    x = inputs[0].flatten(0, 1)
    moments[name] = moments.get(name, 0) + x.T @ x


def round_by_moment(weight: Tensor, moment: Tensor, group: int) -> Rounded:
    """
    Args:
        weight: [N, K]
        moment: [K, K] sum of x x^T over the inputs seen.
    """
    order = moment.diagonal().argsort(descending=True)
    left, moment = weight[:, order].double(), moment[order][:, order].double()
    moment.diagonal().add_(0.05 * moment.diagonal().mean())
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True)
    width, depth = weight.shape
    codes = np.empty((width, depth), np.int64)
    zeros, scales = np.empty((width, depth // group), np.int64), np.empty((width, depth // group), np.float16)
    place = order.numpy()
    for first in range(0, depth, group):
        part, end = left[:, first : first + group].clone(), first + group
        scale, zero = _best_steps(part)
        zeros[:, first // group], scales[:, first // group] = zero.numpy(), scale.numpy()
        missed = torch.zeros_like(part)
        for at in range(group):
            code = ((part[:, at] / scale).round() + zero).clamp(0, MOST)
            codes[:, place[first + at]] = code.numpy()
            missed[:, at] = (part[:, at] - (code - zero) * scale) / factor[first + at, first + at]
            part[:, at:] -= missed[:, at, None] * factor[first + at, first + at : end]
        left[:, end:] -= missed @ factor[first:end, end:]
    return Rounded(codes, zeros, scales, np.argsort(place) // group)


def _best_steps(part: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero [N] of a group [N, G]: of some ranges the one with the least error."""
    low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
    tries = []
    for shrink in _SHRINKS:
        scale = ((high - low) * shrink / MOST).clamp_min(1e-4).half().double()
        zero = (-low * shrink / scale).round().clamp(1, MOST)
        codes = ((part / scale[:, None]).round() + zero[:, None]).clamp(0, MOST)
        error = ((codes - zero[:, None]) * scale[:, None] - part).abs().pow(2.4).sum(1)
        tries.append((error, scale, zero))
    errors, scales, zeros = (torch.stack(values) for values in zip(*tries, strict=True))
    best = errors.argmin(0, keepdim=True)
    return scales.gather(0, best)[0], zeros.gather(0, best)[0]
