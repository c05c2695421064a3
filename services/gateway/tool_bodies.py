"""Tools and calls in request bodies, as OpenAI writes them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """What the model may call. Left-out `parameters` mean that the function takes none."""

    name: str = dataclasses.field(metadata={"help": "1 to 128 letters, digits and the characters _ . : -"})
    description: str | None = None
    parameters: dict[str, Any] | None = dataclasses.field(
        default=None, metadata={"help": "JSON schema of the arguments, an object."}
    )
    strict: bool | None = dataclasses.field(
        default=None,
        metadata={
            "help": "true: arguments always fit the schema, with tool_choice auto too. false: they are any JSON object."
            " Left out: they fit where a call is forced."
        },
    )


@dataclass(frozen=True, slots=True)
class Tool:
    """Functions are the only tools."""

    type: Literal["function"]
    function: FunctionTool


@dataclass(frozen=True, slots=True)
class FunctionName:
    """Which function."""

    name: str


@dataclass(frozen=True, slots=True)
class NamedTool:
    """`tool_choice` that forces one function."""

    type: Literal["function"]
    function: FunctionName
