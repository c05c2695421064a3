"""The tokenizer inside a GGUF file -> tokenizer.json, tokenizer_config.json and chat_template.jinja.

GGUF stores a byte-level BPE as vocabulary, merges and the *name* of a pre-tokenizer; how that name splits text is
knowledge of the runtime. `smollm` stands for digits one by one, then GPT-2's pattern.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

_CONTROL, _USER_DEFINED = 3, 4  # GGUF token types that are matched whole


def write_tokenizer(metadata: dict[str, Any], into: Path) -> None:
    """Write the tokenizer's files into the directory `into`.

    Raises:
        ConfigError: the file's tokenizer is of a kind that this does not know.
    """
    kind, splitter = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if (kind, splitter) != ("gpt2", "smollm"):
        raise ConfigError(f"GGUF tokenizer {kind!r} with pre-tokenizer {splitter!r} is not supported: only gpt2/smollm")
    _build(metadata).save(str(into / "tokenizer.json"))
    (into / "tokenizer_config.json").write_text(json.dumps(_config(metadata), indent=2, ensure_ascii=False) + "\n")
    template = metadata.get("tokenizer.chat_template")
    if template:
        (into / "chat_template.jinja").write_text(template)


def _build(metadata: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    whole = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    for token, kind in whole:  # one at a time: they keep their ids, being in the vocabulary already
        special = kind == _CONTROL
        added = AddedToken(token, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    return tokenizer


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token", False),
        "model_max_length": metadata["llama.context_length"],
    }
    ids = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
           "pad_token": "padding_token_id"}  # fmt: skip
    for name, key in ids.items():
        if (token_id := metadata.get(f"tokenizer.ggml.{key}")) is not None:
            config[name] = tokens[token_id]
    return config
