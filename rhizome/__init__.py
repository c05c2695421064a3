"""Rhizome: LLM and VLM serving as independent services over NATS, and a language for programs of generations.

`import rhizome as rz` loads nothing: a name of the language is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhizome.lang.backends.anthropic import Anthropic as Anthropic
    from rhizome.lang.backends.base import Backend as Backend
    from rhizome.lang.backends.base import Completion as Completion
    from rhizome.lang.backends.endpoint import RuntimeEndpoint as RuntimeEndpoint
    from rhizome.lang.backends.fake import FakeBackend as FakeBackend
    from rhizome.lang.backends.nats import NatsEndpoint as NatsEndpoint
    from rhizome.lang.backends.openai import OpenAI as OpenAI
    from rhizome.lang.chat_template import ChatTemplate as ChatTemplate
    from rhizome.lang.choices import greedy_token_selection as greedy_token_selection
    from rhizome.lang.choices import token_length_normalized as token_length_normalized
    from rhizome.lang.choices import unconditional_likelihood_normalized as unconditional_likelihood_normalized
    from rhizome.lang.control import flush_cache as flush_cache
    from rhizome.lang.control import get_server_info as get_server_info
    from rhizome.lang.defaults import set_default_backend as set_default_backend
    from rhizome.lang.defaults import set_default_record as set_default_record
    from rhizome.lang.errors import BackendError as BackendError
    from rhizome.lang.errors import LanguageError as LanguageError
    from rhizome.lang.errors import ProgramCancelled as ProgramCancelled
    from rhizome.lang.errors import ProgramError as ProgramError
    from rhizome.lang.errors import SpeculationMismatch as SpeculationMismatch
    from rhizome.lang.errors import UnknownVariable as UnknownVariable
    from rhizome.lang.errors import Unsupported as Unsupported
    from rhizome.lang.primitives import assistant as assistant
    from rhizome.lang.primitives import assistant_begin as assistant_begin
    from rhizome.lang.primitives import assistant_end as assistant_end
    from rhizome.lang.primitives import gen as gen
    from rhizome.lang.primitives import gen_int as gen_int
    from rhizome.lang.primitives import gen_string as gen_string
    from rhizome.lang.primitives import image as image
    from rhizome.lang.primitives import select as select
    from rhizome.lang.primitives import separate_reasoning as separate_reasoning
    from rhizome.lang.primitives import system as system
    from rhizome.lang.primitives import system_begin as system_begin
    from rhizome.lang.primitives import system_end as system_end
    from rhizome.lang.primitives import user as user
    from rhizome.lang.primitives import user_begin as user_begin
    from rhizome.lang.primitives import user_end as user_end
    from rhizome.lang.primitives import video as video
    from rhizome.lang.program import Function as Function
    from rhizome.lang.program import function as function
    from rhizome.lang.recording import Recorder as Recorder
    from rhizome.lang.runtime import Engine as Engine
    from rhizome.lang.runtime import Runtime as Runtime
    from rhizome.lang.state import AsyncProgramState as AsyncProgramState
    from rhizome.lang.state import ProgramState as ProgramState
    from rhizome.lang.state import ProgramStateGroup as ProgramStateGroup

_MODULES = {
    "backends.anthropic": ("Anthropic",),
    "backends.base": ("Backend", "Completion"),
    "backends.endpoint": ("RuntimeEndpoint",),
    "backends.fake": ("FakeBackend",),
    "backends.nats": ("NatsEndpoint",),
    "backends.openai": ("OpenAI",),
    "chat_template": ("ChatTemplate",),
    "choices": ("greedy_token_selection", "token_length_normalized", "unconditional_likelihood_normalized"),
    "control": ("flush_cache", "get_server_info"),
    "defaults": ("set_default_backend", "set_default_record"),
    "errors": ("BackendError", "LanguageError", "ProgramCancelled", "ProgramError", "SpeculationMismatch",
               "UnknownVariable", "Unsupported"),
    "primitives": ("assistant", "assistant_begin", "assistant_end", "gen", "gen_int", "gen_string", "image", "select",
                   "separate_reasoning", "system", "system_begin", "system_end", "user", "user_begin", "user_end",
                   "video"),
    "program": ("Function", "function"),
    "recording": ("Recorder",),
    "runtime": ("Engine", "Runtime"),
    "state": ("AsyncProgramState", "ProgramState", "ProgramStateGroup"),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rhizome' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rhizome.lang.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
