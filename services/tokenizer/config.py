"""Flags of the tokenizer service."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import CommonConfig, option
from shared.errors import ConfigError

PROMPT_CHARS_PER_TOKEN = 32
"""Default bound of a prompt's text: more characters than this per token of context is no ordinary text."""
ToolCallParser = Literal[
    "auto",
    "none",
    "hermes",
    "llama3",
    "mistral",
    "mistral-named",
    "nemotron",
    "pythonic",
    "qwen",
    "qwen25",
    "qwen3_coder",
]
"""Names of `tool_calls/formats.py`; SGLang's where it has the same."""
ReasoningParser = Literal[
    "auto", "none", "deepseek-r1", "deepseek-v3", "glm45", "kimi", "mistral", "qwen3", "qwen3-thinking"
]
"""Names of `reasoning.py`; SGLang's where it has the same."""


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Resolved once in `__main__`, passed down, never changed."""

    model_path: str = option(help="model directory in Hugging Face format, with tokenizer.json", group="model")
    served_model_name: str = option("", help="name clients use (default: the directory's name)", group="model")
    chat_template: str = option(
        "", help="built-in template, one of the model's named templates, or a file (.jinja, .json)",
        group="model", metavar="NAME|FILE",
    )  # fmt: skip
    tool_call_parser: ToolCallParser = option(
        "auto", help="how the model writes tool calls; auto: as its chat template asks for them; none: leave them in"
        " the text", group="model",
    )  # fmt: skip
    reasoning_parser: ReasoningParser = option(
        "auto", help="how the model marks what it thinks; auto: by the tags in its chat template; none: leave it in"
        " the text", group="model",
    )  # fmt: skip
    context_length: int | None = option(
        None, help="longest prompt plus answer, tokens (default: the model's)", group="model"
    )
    sampling_defaults: Literal["model", "openai"] = option(
        "model",
        help="where omitted sampling parameters come from: generation_config.json or the OpenAI API",
        group="model",
    )
    media_timeout_s: float = option(
        120.0, help="seconds that fetching and encoding the images and videos of a request may take", group="limits"
    )
    max_media_per_request: int = option(64, help="most images and videos in one request", group="limits")
    max_streams: int = option(4096, help="most requests in this instance at once; more are refused", group="limits")
    max_prompt_chars: int = option(
        0, help=f"longest prompt text, characters; 0 = {PROMPT_CHARS_PER_TOKEN} per token of context", group="limits"
    )
    encode_threads: int = option(2, help="threads that encode long texts", group="limits")
    max_pending_encodes: int = option(
        256, help="most long texts waiting for those threads; more are refused", group="limits"
    )
    common: CommonConfig = field(default_factory=CommonConfig)

    def __post_init__(self) -> None:
        for flag in ("max_streams", "encode_threads", "max_pending_encodes"):
            if getattr(self, flag) < 1:
                raise ConfigError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(self, flag)}")
        if self.context_length is not None and self.context_length < 2:
            raise ConfigError(f"--context-length must be at least 2, got {self.context_length}")
        if self.max_prompt_chars < 0:
            raise ConfigError(f"--max-prompt-chars must be 0 or positive, got {self.max_prompt_chars}")

    @property
    def model_name(self) -> str:
        """The name that `/v1/models` shows."""
        return self.served_model_name or Path(self.model_path).resolve().name
