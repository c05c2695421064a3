"""The converter against transformers' own reading of the same GGUF file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from rhizome.models.gguf_convert import convert
from shared.errors import ConfigError
from shared.model_config import load_model_config
from tests.plain_model import plain_model
from tests.unit.rhizome.models.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert(gguf, folder, lambda _: None)
    return folder


@pytest.fixture(scope="module")
def oracle_tokenizer(gguf: Path) -> Any:
    """transformers' reading of the file, with digits split off first.

    transformers has no rule for the pre-tokenizer `smollm` and falls back to GPT-2's pattern alone; the model was
    trained, and llama.cpp runs it, with every digit apart.
    """
    oracle = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    oracle.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), oracle.backend_tokenizer.pre_tokenizer]
    )
    return oracle


def texts() -> list[str]:
    rng = random.Random(0)
    alphabet = "abc the quick ABC 0123\n\t.,'éß日本🙂👍🏽<|>"
    return [
        "", " ", "the quick brown fox", "  two  spaces ", "a\r\n\r\nb\t\tc", "they're we'll I'm", "123 456.78", "a  1",
        "x = 3\n    1", "<|im_start|>user\nhi<|im_end|>", "<|im_start|", "日本語のテスト", "\x00\x7f\u200b",
        *("".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(500)),
    ]  # fmt: skip


def test_token_ids_equal_transformers(converted: Path, oracle_tokenizer: Any) -> None:
    ours = AutoTokenizer.from_pretrained(converted)
    for text in texts():
        assert ours(text)["input_ids"] == oracle_tokenizer(text)["input_ids"], repr(text)


def test_decoding_gives_the_text_back(converted: Path) -> None:
    ours = AutoTokenizer.from_pretrained(converted)
    for text in texts():
        assert ours.decode(ours(text)["input_ids"]) == text


def test_digits_are_tokens_of_their_own(converted: Path) -> None:
    ours = AutoTokenizer.from_pretrained(converted)
    assert ours.tokenize("a  12") == [*ours.tokenize("a  "), "1", "2"]


def test_chat_template_and_special_tokens_equal_transformers(converted: Path, oracle_tokenizer: Any) -> None:
    ours = AutoTokenizer.from_pretrained(converted)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert ours.apply_chat_template(chat, tokenize=False) == oracle_tokenizer.apply_chat_template(chat, tokenize=False)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "all_special_ids"):
        assert getattr(ours, name) == getattr(oracle_tokenizer, name)


def test_logits_equal_transformers(converted: Path, gguf: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    oracle = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name), dtype=torch.float32
    )
    weights = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=oracle)["tensors"]
    oracle.load_state_dict(weights, strict=False)
    oracle.tie_weights()
    ours = AutoModelForCausalLM.from_pretrained(plain_model(converted, tmp_path / "plain"), dtype=torch.float32)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(ids).logits, oracle.eval()(ids).logits, rtol=0, atol=1e-5)


def test_blocks_are_kept_as_they_are(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    types = config["quantization_config"]["types"]
    assert (types["model.embed_tokens"], types["model.layers.1.mlp.down_proj"], len(types)) == ("Q8_0", "Q4_1", 15)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(converted / "model.safetensors").items()}
    assert shapes["model.layers.0.mlp.down_proj.weight_blocks"] == (64, 96 // 32 * 20)
    assert shapes["model.norm.weight"] == (64,)


def test_the_result_is_what_the_services_read(converted: Path) -> None:
    config = load_model_config(converted)
    assert (config.num_q_heads, config.num_kv_heads, config.num_layers, config.context_length) == (4, 2, 2, 256)
    assert config.rms_norm_eps == 1e-5
    assert config.tie_embeddings
    assert config.eos_token_ids == (2,)
    assert json.loads((converted / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [({"architecture": "falcon"}, "architecture 'falcon'"), ({"pre": "tekken"}, "pre-tokenizer 'tekken'")],
)
def test_a_file_that_it_does_not_understand_is_refused(tmp_path: Path, kwargs: dict[str, str], reason: str) -> None:
    gguf = write_tiny_gguf(tmp_path / "other.gguf", **kwargs)
    with pytest.raises(ConfigError, match=reason):
        convert(gguf, tmp_path, lambda _: None)
