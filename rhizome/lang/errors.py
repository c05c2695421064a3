"""Errors of the language. All of them derive from `LanguageError` and say what to change."""

from __future__ import annotations

from rhizome.lang.source import Line


class LanguageError(Exception):
    """Base of everything that a program, its arguments or a backend can cause."""


class ProgramError(LanguageError):
    """Something in a program failed; raised where a variable or the text is read.

    `line` is the program's line, `branch` the path of fork indices that led to the failing state (empty at the top).
    """

    def __init__(self, what: str, line: Line | None, branch: tuple[int, ...], cause: BaseException) -> None:
        at = f"{line}: " if line else ""
        where = f" in fork branch {'.'.join(map(str, branch))}" if branch else ""
        super().__init__(f"{at}{what}{where} failed: {cause}")
        self.line, self.branch = line, branch
        self.__cause__ = cause


class BackendError(LanguageError):
    """The server refused, broke off or cannot be reached. `status` is the HTTP status, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unsupported(LanguageError):
    """The backend cannot do what a primitive asks for; nothing was sent."""


class SpeculationMismatch(LanguageError):
    """A chat model did not answer in the pattern of the assistant's turn, within the bounded number of calls."""


class ProgramCancelled(LanguageError):
    """The program was cancelled before this was computed."""

    def __init__(self) -> None:
        super().__init__("the program was cancelled")


class UnknownVariable(LanguageError, KeyError):
    """No generation of this name has been appended to the state."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"no variable {name!r}; there are: {', '.join(known) or 'none'}")

    def __str__(self) -> str:
        return str(self.args[0])
