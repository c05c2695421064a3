"""Starting a deployment from a program: what goes wrong is told in the launcher's words."""

from __future__ import annotations

import pytest

import rhizome as rz
from rhizome.lang.runtime import _argv


def test_flags_are_the_launchers() -> None:
    assert _argv({"model_path": "m", "tp_size": 2, "disable_radix_cache": True, "api_key": None, "x": False}) == [
        "--model-path", "m", "--tp-size", "2", "--disable-radix-cache",
    ]  # fmt: skip


def test_a_deployment_that_does_not_start_raises_with_the_reason() -> None:
    with pytest.raises(rz.LanguageError, match=r"(?s)ended with status 2:.*--model-path .*nowhere"):
        rz.Runtime(model_path="./nowhere")
