"""A model's vocabulary: tokenizer.json, special tokens, and the words a chat template may use for them.

Knows nothing of requests. Loaded once at start-up; encoding and decoding are built on it.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from shared.errors import ConfigError
from shared.json_file import read_json_object

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Vocabulary:
    """Token strings by id. Immutable, lives as long as the process.

    `tokens` covers every id of the tokenizer and of the model, whichever has more; ids without a token (padding of
    the embedding matrix) have None.
    """

    def __init__(self, tokenizer: Tokenizer, model_vocab_size: int, special_tokens: dict[str, str]) -> None:
        """Args:
        tokenizer: truncation and padding are switched off on it.
        model_vocab_size: rows of the model's embedding; ids from there on must not be sent to it.
        special_tokens: template names to token strings, for example {"bos_token": "<s>"}.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        size = max(model_vocab_size, tokenizer.get_vocab_size(with_added_tokens=True), *(i + 1 for i in added), 1)
        self.tokenizer = tokenizer
        self.size = model_vocab_size
        self.special_tokens = special_tokens
        self.tokens: list[str | None] = [tokenizer.id_to_token(i) for i in range(size)]
        special = {token.content for token in added.values() if token.special}
        self.special_ids = frozenset(i for i, token in enumerate(self.tokens) if token in special)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the tokenizer's own end-of-sequence token."""
        eos = self.special_tokens.get("eos_token")
        return None if eos is None else self.tokenizer.token_to_id(eos)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to ids. Releases the interpreter lock: safe and useful to call in a thread."""
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Ids to text in one shot: what the incremental detokenizers must equal."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


def load_vocabulary(model_path: str | Path, model_vocab_size: int) -> Vocabulary:
    """Read tokenizer.json and the special tokens beside it.

    Raises:
        ConfigError: tokenizer.json is missing or unreadable.
    """
    folder = Path(model_path)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist. Convert the model's tokenizer once, where transformers is installed: "
            f"python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{folder}')"
            f".save_pretrained('{folder}')\""
        )
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except (ValueError, OSError) as fault:
        raise ConfigError(f"{path} cannot be read by the tokenizers library: {fault}") from fault
    return Vocabulary(tokenizer, model_vocab_size, _special_tokens(folder))


def _special_tokens(folder: Path) -> dict[str, str]:
    merged = {
        **read_json_object(folder / "special_tokens_map.json"),
        **read_json_object(folder / "tokenizer_config.json"),
    }
    out = {}
    for name in SPECIAL_TOKEN_NAMES:
        value = merged.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            out[name] = content
    return out
