"""The one error tree.

Every error that a user, a message, a file or a flag can cause is a `RhizomeError`. It carries a stable
`code` (for programs), a message that says what to change (for people) and, where one request field is to
blame, `param`. It travels over the bus as `messages.ErrorInfo`; only the gateway turns codes into HTTP
statuses (services/gateway/http_errors.py).
"""

from __future__ import annotations


class RhizomeError(Exception):
    """Base of the tree. `code` is stable across releases; `param` names the field at fault or is None."""

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(RhizomeError):
    """The request can never succeed as it is; the sender has to change it."""

    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """Prompt (plus the room it asks for) is longer than the model's context or than the KV pool."""

    code = "context_length_exceeded"


class Unauthorized(RhizomeError):
    """Missing or wrong API key."""

    code = "invalid_api_key"


class NotFound(RhizomeError):
    """No such model, route or object."""

    code = "not_found"


class TooLarge(RhizomeError):
    """A body or a message is over its size limit."""

    code = "too_large"


class Overloaded(RhizomeError):
    """A bounded queue is full; the same request may succeed later."""

    code = "overloaded"


class Unavailable(RhizomeError):
    """A service that the request needs is absent or went away; the same request may succeed later."""

    code = "unavailable"


class MediaLost(Unavailable):
    """The embeddings of an image are nowhere any more; encoding it again helps."""

    code = "media_lost"


class DeadlineExceeded(RhizomeError):
    """The request outlived its queue timeout or its deadline."""

    code = "deadline_exceeded"


class Aborted(RhizomeError):
    """The client went away or cancelled."""

    code = "aborted"


class ConfigError(RhizomeError):
    """A flag, an environment variable or a file given at start-up is wrong; the process does not start."""

    code = "config_error"


class WireError(RhizomeError):
    """Bytes on the bus do not decode to the message that the subject carries."""

    code = "bad_message"


_BY_CODE: dict[str, type[RhizomeError]] = {
    cls.code: cls
    for cls in (
        RhizomeError, InvalidRequest, ContextLengthExceeded, Unauthorized, NotFound, TooLarge,
        Overloaded, Unavailable, MediaLost, DeadlineExceeded, Aborted, ConfigError, WireError,
    )
}  # fmt: skip


def from_code(code: str, message: str, param: str | None = None) -> RhizomeError:
    """Rebuild an error that came over the bus; an unknown code becomes the base class."""
    return _BY_CODE.get(code, RhizomeError)(message, param=param)
