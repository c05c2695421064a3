"""The default model behind the whole stack, started once for all end-to-end tests, and in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rhizome.models import DEFAULT_MODEL
from rhizome.models.resolve import resolve_model
from tests.e2e.stack import Stack
from tests.plain_model import plain_model


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    running = Stack()
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' model of the stack's weights, in fp32, and the tokenizer."""
    folder = plain_model(resolve_model(DEFAULT_MODEL, print), tmp_path_factory.mktemp("plain") / "model")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
