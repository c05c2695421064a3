"""Start-up: files, flags, defaults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.tokenizer.config import TokenizerConfig
from services.tokenizer.model import load_model
from services.tokenizer.schedulers import SchedulerRoll
from shared.actor import LIVENESS_TIMEOUT_S
from shared.config import parse_config
from shared.errors import ConfigError
from shared.vocabulary import load_vocabulary
from tests.unit.tokenizer import tiny


def test_a_directory_without_tokenizer_json_says_how_to_convert(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json does not exist.*save_pretrained"):
        load_vocabulary(tmp_path, 10)


def test_a_broken_tokenizer_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_vocabulary(tmp_path, 10)


def test_truncation_and_padding_of_the_file_do_not_touch_prompts(tmp_path: Path) -> None:
    tokenizer = tiny.Tokenizer.from_str(tiny.byte_level().to_str())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    vocabulary = load_vocabulary(tiny.write_model(tmp_path, tokenizer), 10)
    text = "The quick brown fox"
    ids = vocabulary.encode(text, add_special_tokens=True)
    assert vocabulary.decode(ids, skip_special_tokens=False) == text


def test_sampling_defaults_come_from_the_model_unless_openais_are_asked_for(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 20}))
    defaults = load_model(TokenizerConfig(model_path=str(folder))).sampling_defaults
    assert (defaults.temperature, defaults.top_k) == (0.6, 20)
    neutral = load_model(TokenizerConfig(model_path=str(folder), sampling_defaults="openai")).sampling_defaults
    assert (neutral.temperature, neutral.top_k) == (1.0, -1)


def test_the_tokenizers_eos_joins_the_models(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "m", eos_token={"content": "<|endoftext|>"})
    ids = load_model(TokenizerConfig(model_path=str(folder))).eos_token_ids
    assert ids == sorted(tiny.byte_level().token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>"))


def test_the_served_name_is_the_directorys_unless_given(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "my-model")
    assert load_model(TokenizerConfig(model_path=str(folder))).name == "my-model"
    assert load_model(TokenizerConfig(model_path=str(folder), served_model_name="x")).name == "x"


@pytest.mark.parametrize("flags", [["--max-streams", "0"], ["--context-length", "1"], ["--max-prompt-chars", "-1"], []])
def test_wrong_flags_stop_the_start_with_their_name(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model-path", "x", *flags] if flags else []
    with pytest.raises(SystemExit) as stop:
        parse_config(TokenizerConfig, "tokenizer", "", argv)
    assert stop.value.code == 2
    assert (flags[0] if flags else "--model-path") in capsys.readouterr().err


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, services.tokenizer.__main__, services.tokenizer.service;"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_a_scheduler_in_use_that_nobody_hears_of_is_overdue_after_the_liveness_timeout() -> None:
    now = 0.0
    roll = SchedulerRoll(lambda: now)
    assert roll.overdue({"a", "b"}, ["a"]) == []
    now = LIVENESS_TIMEOUT_S
    assert roll.overdue({"a", "b"}, ["a"]) == ["b"]
    assert roll.overdue({"a", "b"}, ["a", "b"]) == []


def test_a_scheduler_that_was_only_silent_counts_again() -> None:
    roll = SchedulerRoll()
    roll.lost("a")
    assert roll.is_gone("a")
    roll.overdue(set(), ["a"])
    assert not roll.is_gone("a")
