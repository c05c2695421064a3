"""Where chat templates come from: the model directory, a file of the operator's, or the built-in ones.

Called once at start-up. `chat_templates/*.jinja` in this package are the built-in ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.tokenizer.chat_template import ChatTemplate
from services.tokenizer.media.placeholders import Placeholders
from shared.errors import ConfigError, InvalidRequest
from shared.json_file import read_json_object
from shared.messages import ChatInput

BUILT_IN = Path(__file__).parent / "chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """The template in use, and the model's separate one for conversations with tools if it has one."""

    default: ChatTemplate | None
    tool_use: ChatTemplate | None = None

    def of(self, chat: ChatInput) -> ChatTemplate | None:
        """The template for a conversation."""
        return (self.tool_use if chat.tools else None) or self.default

    def render(self, chat: ChatInput) -> str:
        """The prompt of a conversation; see `ChatTemplate.render`.

        Raises:
            InvalidRequest: also when there is no template.
        """
        template = self.of(chat)
        if template is None:
            raise InvalidRequest(
                "the model has no chat template: start the tokenizer with --chat-template, or send a plain prompt",
                param="messages",
            )
        return template.render(chat)


def load_chat_templates(
    model_path: str | Path, choice: str, special_tokens: dict[str, str], max_chars: int,
    placeholders: Placeholders | None = None,
) -> ChatTemplates:  # fmt: skip
    """The templates to use.

    Args:
        choice: a name among the model's templates, a built-in name, a file, or "" for the model's own.
        placeholders: of images and videos, where the model takes them.

    Raises:
        ConfigError: no such template, or it does not compile.
    """
    own = _model_templates(Path(model_path))

    def compiled(source: str | None) -> ChatTemplate | None:
        return None if source is None else ChatTemplate(source, special_tokens, max_chars, placeholders)

    if choice:
        return ChatTemplates(compiled(own.get(choice) or _named(choice)))
    return ChatTemplates(compiled(own.get(DEFAULT)), compiled(own.get(TOOL_USE)))


def built_in_names() -> list[str]:
    """Names that `--chat-template` takes without a file."""
    return sorted(path.stem for path in BUILT_IN.glob("*.jinja"))


def _named(choice: str) -> str:
    if choice in built_in_names():
        return (BUILT_IN / f"{choice}.jinja").read_text(encoding="utf-8")
    path = Path(choice)
    if not path.is_file():
        raise ConfigError(
            f"--chat-template {choice!r} is neither a file nor one of the model's or the built-in templates"
            f" ({', '.join(built_in_names())})"
        )
    if path.suffix != ".json":
        return _read(path)
    templates = _by_name(read_json_object(path).get("chat_template"))
    if DEFAULT not in templates:
        raise ConfigError(f"--chat-template {path}: no 'chat_template' in this JSON file")
    return templates[DEFAULT]


def _model_templates(folder: Path) -> dict[str, str]:
    """By name; later sources win: old JSON places, tokenizer_config.json, then the .jinja files."""
    found = _by_name(read_json_object(folder / "chat_template.json").get("chat_template"))
    found |= _by_name(read_json_object(folder / "tokenizer_config.json").get("chat_template"))
    found |= {path.stem: _read(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        found[DEFAULT] = _read(folder / "chat_template.jinja")
    return found


def _by_name(value: Any) -> dict[str, str]:
    """`chat_template` of a JSON file: a string, or a list of {name, template}."""
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        return {
            str(v["name"]): str(v["template"])
            for v in value
            if isinstance(v, dict) and {"name", "template"} <= v.keys()
        }
    return {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"chat template {path} cannot be read: {fault}") from fault
