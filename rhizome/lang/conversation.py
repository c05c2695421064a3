"""The text and the turns of one program state. Plain data: no loop, no backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rhizome.lang.chat_template import ChatTemplate
from rhizome.lang.errors import LanguageError
from rhizome.lang.media import Media

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a backend is asked to continue, in both forms; a snapshot."""

    text: str
    messages: list[Message] = field(default_factory=list)
    """Closed turns, in OpenAI's format."""
    role: str | None = None
    """The open turn."""
    turn_text: str = ""
    """Its text so far."""
    images: list[Media] = field(default_factory=list)
    """All pictures of the text, in order."""


class Conversation:
    """Text with its chat markup, and the same as messages. Owned by one executor."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.text = ""
        self.messages: list[Message] = []
        self.role: str | None = None
        self.images: list[Media] = []
        self._turn_begin = 0
        self._turn_images: list[Media] = []

    def copy(self) -> Conversation:
        """An independent continuation from here."""
        other = Conversation(self.template)
        other.text, other.messages, other.role = self.text, list(self.messages), self.role
        other.images, other._turn_begin, other._turn_images = (
            list(self.images),
            self._turn_begin,
            list(self._turn_images),
        )
        return other

    @property
    def turn_text(self) -> str:
        return self.text[self._turn_begin :] if self.role else ""

    def prompt(self) -> Prompt:
        return Prompt(self.text, list(self.messages), self.role, self.turn_text, list(self.images))

    def append(self, text: str) -> None:
        self.text += text

    def append_image(self, image: Media) -> None:
        self.images.append(image)
        self._turn_images.append(image)
        self.text += self.template.image_token

    def begin(self, role: str) -> None:
        """Open a turn; the template's default system text comes first where a conversation has none.

        Raises:
            LanguageError: another turn is open.
        """
        if self.role is not None:
            raise LanguageError(f"the {role} turn begins inside the {self.role} turn: end that one first")
        default = self.template.default_system_prompt
        if not self.messages and role != "system" and default:
            self.begin("system")
            self.append(default)
            self.end("system")
        prefix, _ = self.template.get_prefix_and_suffix(role, self.messages)
        self.append(prefix)
        self.role, self._turn_begin, self._turn_images = role, len(self.text), []

    def end(self, role: str) -> None:
        """Close the open turn.

        Raises:
            LanguageError: it is not this role's.
        """
        if self.role != role:
            raise LanguageError(f"the {role} turn ends, but {f'the {self.role} turn' if self.role else 'none'} is open")
        content = self.turn_text.lstrip()
        _, suffix = self.template.get_prefix_and_suffix(role, self.messages)
        self.role = None
        self.append(suffix)
        if self._turn_images:
            text = content.replace(self.template.image_token, "") if self.template.image_token else content
            pictures = [{"type": "image_url", "image_url": {"url": image.url}} for image in self._turn_images]
            self.messages.append({"role": role, "content": [*pictures, {"type": "text", "text": text}]})
        else:
            self.messages.append({"role": role, "content": content})
        self._turn_images = []
