"""Small tokenizers of every decoder family, trained in a moment, and model directories around them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rhizome.models.resolve import DEFAULT_MODEL, resolve_model
from shared.vocabulary import Vocabulary, load_vocabulary

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't.",
    "def add(a, b):\n    return a + b  # sum\n\n\nprint(add(1, 2))",
    "Übermut tut selten gut. Ça va bien, merci! El niño está aquí.",
    "日本語のテキスト。中文文本。한국어 텍스트。",
    "😀 😃 👩‍👩‍👧 flags 🇫🇷🇩🇪 and hearts ❤️",
] * 4
LONG_TOKEN = "<" + "long" * 40 + ">"
"""Makes texts that are long but have few tokens."""
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@functools.cache
def byte_level() -> Tokenizer:
    """GPT-2, Llama 3, Qwen, SmolLM: byte-level BPE with special tokens and awkward added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    added = ("<tool call>", "né", "日本", LONG_TOKEN)
    tokenizer.add_tokens([AddedToken(content, normalized=False) for content in added])
    return tokenizer


@functools.cache
def byte_fallback() -> Tokenizer:
    """Llama 2 and Mistral: sentencepiece-style BPE with byte tokens and a prefix space."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=220))
    doc = json.loads(trained.to_str())
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *doc["model"]["vocab"]]
    doc["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    doc["model"].update(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer.from_str(json.dumps(doc))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@functools.cache
def gemma_like() -> Tokenizer:
    """Byte fallback without a prefix space."""
    tokenizer = Tokenizer.from_str(byte_fallback().to_str())
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@functools.cache
def metaspace() -> Tokenizer:
    """T5, XLM-R: Unigram with Metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    )
    return tokenizer


@functools.cache
def word_piece() -> Tokenizer:
    """BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"]))
    return tokenizer


@functools.cache
def no_decoder() -> Tokenizer:
    """Tokens joined by spaces."""
    tokenizer = Tokenizer.from_str(word_piece().to_str())
    doc = json.loads(tokenizer.to_str())
    return Tokenizer.from_str(json.dumps({**doc, "decoder": None}))


@functools.cache
def end_of_word() -> Tokenizer:
    """A decoder without a table: `</w>` marks the end of a word (the first GPT)."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>"))
    return tokenizer


def vocabulary(tokenizer: Tokenizer, extra_ids: int = 3, **special_tokens: str) -> Vocabulary:
    """A vocabulary whose model has a few ids more than the tokenizer, as padded embeddings do."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    return Vocabulary(copy, copy.get_vocab_size() + extra_ids, special_tokens)


def real_folder() -> Path:
    """SmolLM2's directory; fetched by the first test that asks, if no server was started before."""
    return resolve_model(DEFAULT_MODEL, print)


def real_vocabulary() -> Vocabulary:
    return load_vocabulary(real_folder(), 49152)


def write_model(folder: Path, tokenizer: Tokenizer | None = None, **tokenizer_config: Any) -> Path:
    """A model directory with everything but weights; context of 128 tokens, EOS `<|im_end|>`."""
    tokenizer = tokenizer or byte_level()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.get_vocab_size() + 3,
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 128, "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    words = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", **tokenizer_config}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder
