"""Text that the default model wrote, for tests to calibrate with; `python -m tests.integration.written_text` renews it.

Sampled as it is likely, from nothing but the token that begins a document: it covers what the model knows, and nothing
was picked. It is kept because sampling takes as long as the test, and another version of torch may draw other tokens.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rhizome.models import DEFAULT_MODEL
from rhizome.models.resolve import resolve_model
from tests.plain_model import plain_model

WRITTEN = Path(__file__).with_name("written_text.npy")
PIECES, LENGTH, BEGIN = 32, 256, 0


def written_text() -> Tensor:
    """[PIECES, LENGTH] int64 tokens."""
    return torch.from_numpy(np.load(WRITTEN).astype(np.int64))


@torch.inference_mode()
def write_text(plain: Path) -> Tensor:
    """[PIECES, LENGTH] int64 tokens by the checkpoint `plain`, at temperature 1."""
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    torch.manual_seed(0)
    tokens, cache = [torch.full((PIECES, 1), BEGIN)], None
    while len(tokens) < LENGTH:
        step = model(input_ids=tokens[-1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        tokens.append(torch.multinomial(step.logits[:, -1].softmax(-1), 1))
    return torch.cat(tokens, 1)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        plain = plain_model(resolve_model(DEFAULT_MODEL, print), Path(folder) / "model")
        np.save(WRITTEN, write_text(plain).numpy().astype(np.uint16))
